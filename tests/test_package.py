"What an import costs, and that modules import only from earlier lessons"
import ast
import re
import subprocess
import sys

import pytest
from counting import NBS

LIB = NBS.parent/'course_lib'
LESSONS = {match[2]: int(match[1]) for p in NBS.glob('*.ipynb') if (match := re.fullmatch(r'(\d\d)_(\w+)', p.stem))}
HEAVY = {'course_lib': {'torch', 'fastai', 'pandas', 'numpy', 'matplotlib'},
         'course_lib.datasets': {'fastai', 'matplotlib', 'seaborn'}, 'course_lib.metrics': {'fastai'}, 'course_lib.losses': {'fastai'}}


@pytest.mark.parametrize('module', HEAVY)
def test_import_is_cheap(module):
    if module != 'course_lib' and not (LIB/module.split('.')[1]).with_suffix('.py').exists(): pytest.skip('not written yet')
    code = f'import sys, {module}; print(*(name for name in {HEAVY[module]} if name in sys.modules))'
    assert subprocess.run([sys.executable, '-c', code], check=True, capture_output=True, text=True).stdout.split() == []


def imports(path):
    "Names of the modules of course_lib that the file imports, such as 'tools.env'"
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(node, ast.Import): names = [alias.name for alias in node.names]
        elif not isinstance(node, ast.ImportFrom): continue
        elif node.level: names = ['.'.join(['course_lib', *path.relative_to(LIB).parts[:-node.level], *filter(None, [node.module])])]
        else: names = [node.module] if node.module != 'course_lib' else [f'course_lib.{alias.name}' for alias in node.names]
        yield from (name.removeprefix('course_lib.') for name in names if name.startswith('course_lib.'))


MODULES = {'.'.join(p.relative_to(LIB).with_suffix('').parts): set(imports(p)) for p in sorted(LIB.rglob('*.py')) if not p.name.startswith('_')}


def lessons_under(module, imported=MODULES, seen=()):
    "Numbers of the lessons that a module imports, directly or through others"
    if module in seen: return set()
    found = {LESSONS[o] for o in imported.get(module, ()) if o in LESSONS}
    return found.union(*(lessons_under(o, imported, (*seen, module)) for o in imported.get(module, ())))


@pytest.mark.parametrize('module', MODULES)
def test_arrows_point_down(module):
    "A lesson imports earlier lessons, an exercise also its own, plumbing what it needs; nothing imports the command line"
    assert 'tools.cli' not in MODULES[module]
    own = LESSONS.get(module.removeprefix('exercises.'))
    if own is not None: assert max(lessons_under(module), default=-1) < own + module.startswith('exercises.')


def test_a_wrong_arrow_is_found():
    first, *_, last = sorted(LESSONS, key=LESSONS.get)
    assert lessons_under('a', {'a': {'tools.b'}, 'tools.b': {last}, last: {first}}) == {LESSONS[last], LESSONS[first]}
