"The built wheel in an environment of its own, far from the repository: notebooks inside, commands that work, cheap imports"
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from counting import NBS

ROOT = NBS.parent
SCRIPTS = 'Scripts' if os.name == 'nt' else 'bin'


def run(*command, **kwargs):
    "Run a command; what it said comes with the failure"
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, encoding='utf-8', **kwargs)
    assert done.returncode == 0, f'{command}\n{done.stdout}\n{done.stderr}'
    return done.stdout


@pytest.fixture(scope='module')
def env(tmp_path_factory):
    "An environment with the wheel, built from the source distribution; the libraries under it are those of this one"
    tmp = tmp_path_factory.mktemp('wheel')
    source = shutil.copytree(ROOT, tmp/'source', ignore=shutil.ignore_patterns('.*', '_*cs', 'build', 'dist', '*.egg-info', '__pycache__', 'runs', 'benchmarks', 'tests'))
    run(sys.executable, '-m', 'build', '--no-isolation', '--outdir', tmp/'dist', source)
    run(sys.executable, '-m', 'venv', '--without-pip', tmp/'env')
    python = tmp/'env'/SCRIPTS/'python'
    run(sys.executable, '-m', 'pip', '--python', python, 'install', '--no-deps', '--no-index', '--quiet', next((tmp/'dist').glob('*.whl')))
    # A folder that a .pth file names joins the path, but the .pth files in it are not read: our editable install stays out
    site = Path(run(python, '-c', 'import sysconfig; print(sysconfig.get_path("purelib"))').strip())
    (site/'libraries.pth').write_text(sysconfig.get_path('purelib') + '\n', encoding='utf-8')
    return tmp/'env'


@pytest.fixture
def call(env, tmp_path):
    "Call one of the environment's programs in an empty folder"
    return lambda name, *args: run(env/SCRIPTS/name, *args, cwd=tmp_path)


def test_import_is_cheap_and_from_the_wheel(call, env):
    file, *heavy = call('python', '-c', 'import sys, course_lib; print(course_lib.__file__); [print(m) for m in ("torch", "fastai", "pandas", "numpy") if m in sys.modules]').split()
    assert Path(file).is_relative_to(env) and heavy == []


def test_all_notebooks_are_inside(call):
    names = call('python', '-c', 'from importlib.resources import files; [print(p.name) for p in (files("course_lib.notebooks")).iterdir()]').split()
    assert {p.name for p in NBS.glob('*.ipynb')} <= set(names)


def test_start_copies_the_course_without_solutions(call, tmp_path):
    call('course_lib', 'start', 'learn')
    copied = {p.relative_to(tmp_path/'learn').as_posix(): p.read_text(encoding='utf-8') for p in (tmp_path/'learn').rglob('*.ipynb')}
    lessons = {p.relative_to(NBS).as_posix() for p in NBS.rglob('[0-9][0-9]_*.ipynb')}
    assert lessons <= copied.keys()
    assert not any('BEGIN SOLUTION' in text for text in copied.values())


def test_doctor_finds_nothing_wrong(call): assert 'Python' in call('course_lib', 'doctor')


def test_help_of_every_command(call):
    said = call('course_lib', '--help')
    for command in 'start', 'lab', 'check', 'progress', 'train', 'predict', 'doctor':
        assert command in said
        call('course_lib', command, '--help')
