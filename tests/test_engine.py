"The exercise engine under bad answers, killed processes and real kernels; its parts are tested where they are written, in nbs/tools"
import ast
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from functools import partial

import cloudpickle
import pytest
import torch

from course_lib.exercises import check, hint, progress, solution
from course_lib.tools.engine import BEGIN, END, Exercise, given, judge, shared_worker
from course_lib.tools.learner import (CourseError, _cell, catalog, check_notebook, exercises_in, learner_notebook, notebook_text, notebooks_dir,
                                      page_copy, read_notebook, role, start_course, write_whole)
from course_lib.tools.progress import read_progress, record

cloudpickle.register_pickle_by_value(sys.modules[__name__])     # graders and answers travel by value, as from a notebook
ITEMS = list(catalog().values())
NOTEBOOKS = sorted((notebooks_dir()/'exercises').glob('*.ipynb'))
CODE = [item for item in ITEMS if not item.quiz]


@pytest.fixture(autouse=True)
def own_data(tmp_path, monkeypatch):
    monkeypatch.setenv('COURSE_DATA', str(tmp_path/'data'))


# --- answers that misbehave -----------------------------------------------------------------------------------------------------------

def grade_total(total):
    given(x=[1, 2, 3]).expect(6, total, mistakes={'This is the largest.': 3})
    for n in range(5): given(x=list(range(n))).expect_like(sum, total)


TOTAL = Exercise('demo.total', 'The total', 1, 1, ['Add.', 'sum(x)'], grade_total, seconds=1., memory=300)

def loops(x):
    n = 0
    while True: n += 1          # the learner's loop
def loops_in_c(x): return re.match(r'(a+)+$', 'a'*60 + 'b')
def exits(x): sys.exit('bye')
def exits_hard(x): os._exit(5)
def kills_itself(x): os.kill(os.getpid(), signal.SIGKILL)
def eats(x): return [0] * 10**10
def eats_torch(x): return torch.zeros(10**10)
def eats_slowly(x):
    kept = []
    while True: kept.append(bytearray(10**7))
def fails(x): return inner(x)
def inner(x): return x[0] / 0   # the learner's line
def changes(x):
    x.append(0)
    return sum(x)
def floods(x):
    for _ in range(10**5): print('spam' * 100)
    return 0
def floods_below(x):
    for _ in range(2000): os.write(1, b'spam' * 1000); os.write(2, b'spam' * 1000)
    return 0
def deep(x): return deep(x)
def asks(x): return input('?')
def todo(x): raise NotImplementedError
def closes(x): os.closerange(0, 3); return 0


BAD = {
    'endless loop': (loops, 'error', 'stopped after 1 seconds.*in loops, line .*while True: n \\+= 1'),
    'endless loop in C': (loops_in_c, 'error', 'stopped after 1 seconds'),
    'sys.exit': (exits, 'error', "called sys.exit.*in exits, line .*sys.exit\\('bye'\\)"),
    'os._exit': (exits_hard, 'error', 'exit code 5'),
    'kill': (kills_itself, 'error', 'ended its process'),
    'memory bomb': (eats, 'error', 'more than 300 MB.*in eats'),
    'memory bomb of torch': (eats_torch, 'error', 'more than 300 MB.*in eats_torch'),
    'slow memory bomb': (eats_slowly, 'error', 'more than 300 MB'),
    'exception': (fails, 'error', 'ZeroDivisionError.*in inner, line .*return x\\[0\\] / 0   # the learner'),
    'recursion': (deep, 'error', 'RecursionError.*return deep'),
    'reads input': (asks, 'error', 'EOFError.*input'),
    'changed input': (changes, 'failed', 'changed its input `x`: it has 4 entries, expected 3'),
    'known mistake': (max, 'failed', 'expected: 6; got: 3; look at: This is the largest'),
    'flood': (floods, 'failed', 'got: 0$'),
    'flood below Python': (floods_below, 'failed', 'got: 0$'),
    'closes its streams': (closes, 'failed', 'got: 0$'),
    'no function': (3, 'error', "TypeError.*could not use what your answer is"),
    'cannot be sent': (threading.Lock(), 'failed', 'cannot be sent'),
    'to do': (todo, 'blank', 'no answer yet'),
    'nothing': (None, 'blank', 'no answer yet'),
}


@pytest.mark.parametrize('name', BAD)
def test_bad_answer_gets_its_message_and_the_next_check_works(name):
    answer, status, message = BAD[name]
    start = time.time()
    result = judge(TOTAL, answer)
    assert not result and result.status == status, result
    assert re.search(message, result.message), result.message
    assert len(repr(result)) < 2000 and time.time() - start < 60
    assert judge(TOTAL, sum), 'the right answer passes afterwards'


def test_state_left_behind_does_not_reach_the_caller():
    def spoils(x):
        sys.setrecursionlimit(10**5)
        os.environ['SPOILED'] = '1'
        return sum(x)
    judge(TOTAL, spoils)
    assert 'SPOILED' not in os.environ and sys.getrecursionlimit() < 10**5


def test_checks_from_threads_do_not_mix():
    results = {}
    def ask(name, answer): results[name] = [bool(judge(TOTAL, answer)) for _ in range(5)]
    threads = [threading.Thread(target=ask, args=o) for o in (('right', sum), ('wrong', max))]
    for o in threads: o.start()
    for o in threads: o.join(60)
    assert results == dict(right=[True]*5, wrong=[False]*5)


def test_warm_worker_is_fast_and_the_same():
    judge(TOTAL, sum)
    pid, start = shared_worker().process.pid, time.time()
    for _ in range(20): judge(TOTAL, sum)
    assert shared_worker().process.pid == pid and time.time() - start < 5


@pytest.mark.skipif(os.name == 'nt', reason='signals')
@pytest.mark.parametrize('busy', [False, True])
def test_worker_ends_when_its_caller_is_killed(busy):
    code = '''
import threading, time
from course_lib.tools.engine import shared_worker
w = shared_worker()
w.call('course_lib.tools.runner:code_job', 'result = {}')
print(w.process.pid, flush=True)
if BUSY: w.call('course_lib.tools.runner:code_job', 'while True: pass', seconds=3)
time.sleep(60)'''.replace('BUSY', str(busy))
    caller = subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE, text=True)
    worker = int(caller.stdout.readline())
    time.sleep(.3)
    os.kill(worker, 0)
    caller.kill()
    caller.wait()
    for _ in range(100):
        if gone(worker): return
        time.sleep(.1)
    os.kill(worker, signal.SIGKILL)
    raise AssertionError('the worker lives on')


def gone(pid):
    try: os.kill(pid, 0)
    except ProcessLookupError: return True
    if sys.platform != 'linux': return False
    return open(f'/proc/{pid}/stat').read().rsplit(')', 1)[1].split()[0] == 'Z'     # ended, but nobody has asked for its exit code


# --- the course's own exercises -------------------------------------------------------------------------------------------------------

def answer_of(item, blank=False):
    "What stands in the notebook after its plain cells and this exercise's (blank) solution ran"
    names = {'__name__': '__main__'}
    nb = read_notebook(notebooks_dir()/'exercises'/f'{item.lesson}.ipynb')
    for cell in (learner_notebook(nb) if blank else nb)['cells']:
        if cell['cell_type'] == 'code' and role(cell) in ('plain', 'solution') and not re.search(r'\b(ask|check)\(', cell['source']):
            exec(compile(cell['source'], f'{item.lesson}.ipynb', 'exec'), names)
    return names[item.answer]


@pytest.mark.parametrize('item', CODE, ids=lambda o: o.id)
def test_solution_passes_and_blank_does_not_by_id(item):
    blank = answer_of(item, blank=True)
    assert check(item.id, blank).status == 'blank' and progress().total.startswith('0/')
    assert (done := check(item.id, answer_of(item))), done
    assert progress().total.startswith('1/')
    assert not check(item.id, blank) and progress().total.startswith('1/'), 'what passed once stays passed'


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda o: o.stem)
def test_notebook_keeps_the_rules(path):
    items = exercises_in(read_notebook(path), path.stem)
    code = [o for o in items if not o.quiz]
    assert len(items) >= 4 and len(code) >= 3
    for o in items:
        assert o.id.startswith(path.stem[3:] + '.'), o.id
        assert o.level in (1, 2, 3) and o.minutes > 0 and len(o.hints) >= 2
        assert o.quiz or BEGIN in o.solution, f'{o.id} has no solution'


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda o: o.stem)
def test_learner_copy_leaks_nothing(path):
    nb = read_notebook(path)
    copy = learner_notebook(nb)
    sources = [o['source'] for o in copy['cells']]
    text = '\n'.join(sources)
    for word in (BEGIN, END, 'assert_grader', '@exercise', '@quiz', 'default_exp', '#| export', '#| hide'): assert word not in text, word
    given_away = '\n'.join(o['source'] for o in nb['cells'] if role(o) == 'plain')
    for item in exercises_in(nb):
        body = re.findall(f'{BEGIN}(.*?){END}', item.solution, re.S)
        secret = [line.strip() for part in body for line in part.splitlines() if len(line.strip()) > 15 and line.strip() not in given_away]
        assert item.quiz or secret or len(item.solution) < 400, f'{item.id}: nothing to hide?'
        assert not [o for o in secret + item.hints if o in text], item.id
        assert f'check("{item.id}", ' in text
    for cell in copy['cells']:
        if cell['cell_type'] == 'code': ast.parse(cell['source'])
    assert not [o for o in copy['cells'] if 'NotImplementedError' in o['source'] and o['outputs']]


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda o: o.stem)
def test_page_folds_hints_and_solutions(path):
    items, cells = exercises_in(read_notebook(path)), page_copy(path)['cells']
    folded = [''.join(o['source']) for o in cells if o['cell_type'] == 'markdown' and '<details>' in ''.join(o['source'])]
    assert len(folded) == len(items)
    assert all(text.count('<details>') == text.count('</details>') == len(item.hints) + 1 for text, item in zip(folded, items))
    shown = '\n'.join(''.join(o['source']) for o in cells if o['cell_type'] == 'code')
    assert not re.search(f'{BEGIN}|@exercise|assert_grader|#\\| *(hide|export)', shown)
    assert shown.count('NotImplementedError') >= sum(not o.quiz and 'def ' in o.solution for o in items)


def test_hint_and_solution(capsys):
    item = ITEMS[0]
    for n, text in enumerate(item.hints, 1):
        hint(item.id, n)
        assert text in capsys.readouterr().out
    solution(item.id)
    out = capsys.readouterr().out
    assert 'return' in out and BEGIN not in out


def test_unknown_id_lists_close_matches():
    for call in (partial(check, answer=1), hint, solution):
        with pytest.raises(CourseError, match=f"Did you mean '{ITEMS[0].id}'"): call(ITEMS[0].id[:-1])


# --- progress -------------------------------------------------------------------------------------------------------------------------

def writer(path, name): return [sys.executable, '-c', f'''
from pathlib import Path
from course_lib.tools.progress import record
i = 0
while True: record(f"demo.{name}_{{i}}", True, Path({str(path)!r})); print(i, flush=True); i += 1''']


def test_killed_writers_lose_nothing_and_leave_a_whole_file(tmp_path):
    path = tmp_path/'progress.json'
    for round in range(2):
        writers = [subprocess.Popen(writer(path, f'{name}{round}'), stdout=subprocess.PIPE, text=True) for name in 'ab']
        for o in writers: o.stdout.readline()      # both write
        time.sleep(.3)
        for o in writers: o.kill()
        reported = {f'demo.{name}{round}_{i.strip()}' for name, o in zip('ab', writers) for i in o.stdout if i.strip().isdigit()}
        assert len(reported) > 2 and reported <= set(read_progress(path))
    record('demo.after', True, path)                # no lock stays behind
    assert json.loads(path.read_text())['exercises']['demo.after']['passed']


def test_broken_progress_is_moved_aside_and_the_check_goes_on(tmp_path):
    (tmp_path/'data').mkdir()
    path = tmp_path/'data/progress.json'
    path.write_text('{"exercises": {"a.b"')
    with pytest.warns(UserWarning, match='moved to .*broken-1'): record('demo.x', True)
    assert (tmp_path/'data/progress.broken-1.json').read_text() == '{"exercises": {"a.b"' and 'demo.x' in read_progress(path)


# --- learners' notebooks in real kernels ----------------------------------------------------------------------------------------------

def learner_file(path, answers, last, extra=()):
    "The learner's copy of lesson 00 up to exercise `last`, with some stubs replaced and cells appended"
    nb = learner_notebook(read_notebook(notebooks_dir()/'exercises/00_datasets.ipynb'))
    cells = nb['cells'][:1 + next(i for i, o in enumerate(nb['cells']) if f'check("{last}"' in o['source'])]
    for cell in cells:
        for name, source in answers.items():
            if cell['cell_type'] == 'code' and f'def {name}(' in cell['source']: cell['source'] = source
    write_whole(path, notebook_text(dict(nb, cells=cells + [_cell(o, {}) for o in extra])))
    return path


def course(*args, **env):
    return subprocess.run([sys.executable, '-m', 'course_lib', *map(str, args)], capture_output=True, text=True, env={**os.environ, **env}, timeout=240)


def test_right_notebook_ends_with_0(tmp_path):
    right = {o.answer: o.solution for o in ITEMS if o.id in ('datasets.to_uint8', 'datasets.letterbox')}
    done = course('check', learner_file(tmp_path/'right.ipynb', right, 'datasets.letterbox'))
    assert done.returncode == 0 and '2 of 2 passed' in done.stdout, done.stdout + done.stderr
    assert progress().total.startswith('2/')


def test_wrong_notebook_ends_with_1_and_its_kernel_survives(tmp_path):
    wrong = dict(to_uint8='def to_uint8(ink):\n    import sys\n    sys.exit(3)', letterbox='def letterbox(width, height, size):\n    while True: pass')
    report = check_notebook(learner_file(tmp_path/'wrong.ipynb', wrong, 'datasets.letterbox', ['open("alive", "w").write(str(40 + 2))', '1/0']))
    assert report.exit_code == 1 and [status for status, _ in report.results.values()] == ['error', 'error'], report
    for text in ('line 3:  sys.exit(3)', 'stopped after 5 seconds', 'in letterbox, line 2:  while True: pass', 'ZeroDivisionError', '0 of 2 passed'): assert text in str(report), text
    assert (tmp_path/'alive').read_text() == '42'


@pytest.mark.parametrize('name, content', {'missing': None, 'no notebook': 'hello', 'no checks': '{"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}'}.items())
def test_unusable_file_ends_with_2(tmp_path, name, content):
    path = tmp_path/f'{name}.ipynb'
    if content is not None: path.write_text(content)
    done = course('check', path)
    assert done.returncode == 2 and name in done.stdout + done.stderr and 'Traceback' not in done.stdout + done.stderr, done


def test_start_copies_every_lesson_without_solutions(tmp_path):
    report = start_course(tmp_path/'learn')
    assert {f'exercises/{o.name}' for o in NOTEBOOKS} <= set(report.added) and not any('tools' in o for o in report.added)
    assert BEGIN not in ''.join(o.read_text() for o in (tmp_path/'learn').rglob('*.ipynb'))
    work = tmp_path/'learn/exercises/00_datasets.ipynb'
    work.write_text('my work')
    again = start_course(tmp_path/'learn')
    assert again.kept == ['exercises/00_datasets.ipynb'] and not again.added + again.updated and work.read_text() == 'my work'
