"One test a notebook: it runs from top to bottom, and at least one assertion runs in it"
from concurrent.futures import ProcessPoolExecutor

import pytest
from apart import APART
from counting import NBS, NOTEBOOKS, run_notebook
from nbformat import write
from nbformat.v4 import new_code_cell, new_notebook, new_raw_cell

PAGES = {'index.ipynb', 'glossary.ipynb'}   # to read, nothing to assert


def run_apart(path, flags=()):
    "`run_notebook` in a process of its own: what one notebook leaves behind, the next does not see"
    with ProcessPoolExecutor(1, mp_context=APART) as pool: return pool.submit(run_notebook, path, flags).result()


def check(path, flags=()):
    "Fail with the traceback of the cell, or because no assertion ran"
    error, count = run_apart(path, flags)
    if error: pytest.fail(error, pytrace=False)
    if not count and path.name not in PAGES: pytest.fail(f'{path.name}: no assertion ran', pytrace=False)


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda p: str(p.relative_to(NBS)))
def test_notebook(path, flags): check(path, flags)


PASSES = {'assert': ['x = 2', 'assert x == 2'], 'fastcore': ['from fastcore.test import test_eq', 'test_eq(1, 1)'],
          'in a function': ['def f(x):\n    assert x > 0', 'f(1)'], 'expected failure': ['from fastcore.test import expect_fail', 'with expect_fail(): 1/0']}
NEVER_RAN = {'no assertion': ['x = 1'], 'eval: false': ['#| eval: false\nassert 1 == 1'], 'a flag that is off': ['#| slow\nassert len("a") == 1'],
             'a branch not taken': ['if len("a") > 1: assert 1 == 1'], 'a function not called': ['def f(): assert len("a") == 1'],
             'only in exported code': ['#| export\ndef f(x):\n    assert x > 0', 'f(1)'], 'a constant': ['assert True']}


@pytest.fixture
def planted(tmp_path):
    "Makes a notebook from code cells"
    def make(cells, front=''):
        front = [new_raw_cell(f'---\n{front}\n---')] if front else []
        write(new_notebook(cells=front + [new_code_cell(c) for c in cells]), tmp_path/'99_planted.ipynb')
        return tmp_path/'99_planted.ipynb'
    return make


@pytest.mark.parametrize('cells', PASSES.values(), ids=PASSES)
def test_assertion_counts(planted, cells): check(planted(cells))


@pytest.mark.parametrize('cells', NEVER_RAN.values(), ids=NEVER_RAN)
def test_no_assertion_fails(planted, cells):
    with pytest.raises(pytest.fail.Exception, match='no assertion ran'): check(planted(cells))


def test_skip_exec_fails(planted):
    with pytest.raises(pytest.fail.Exception, match='no assertion ran'): check(planted(['assert 1 == 1'], front='skip_exec: true'))


def test_failing_cell_shows_its_traceback(planted):
    with pytest.raises(pytest.fail.Exception, match=r'(?s)Cell #2.*line 2.*assert wanted == 2.*AssertionError'):
        check(planted(['wanted = 3', 'x = 1\nassert wanted == 2']))


def test_flag_forces_a_cell(planted): check(planted(['#| slow\nassert len("a") == 1']), ['slow'])
