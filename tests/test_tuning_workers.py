"A study that several processes share, on a real PostgreSQL and on SQLite: workers are killed with `kill -9`, no trial is lost or counted twice, and the study goes on to its end"
import contextlib
import ctypes
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform != 'linux', reason='forks workers from one process that has the slow imports behind it, which is safe on Linux only')

HEARTBEAT = 1         # seconds between a trial's signs of life; after two of them are missed, it counts as orphaned
FINISHED = ('COMPLETE', 'PRUNED')


# --- what runs in the workers; they share a study, and a folder in which they note what they do ---
def value_of(params): return (params['x'] - .3)**2 + abs(params['n'] - 4)/10


def work(name, url, notes, n_trials, stall_at=None, seconds=.02):
    "Run the study to `n_trials` finished trials; with `stall_at`, hang in the middle of one's own so-manieth trial"
    from course_lib.tuning import Range, make_study, run_trials, suggest
    mine = []

    def objective(trial):
        mine.append(trial.number)
        (Path(notes)/f'begun-{trial.number}-{os.getpid()}').touch()
        params = suggest(trial, {'x': Range(0., 1.), 'n': Range(1, 9, whole=True)})
        trial.set_user_attr('worker', os.getpid())
        if len(mine) == stall_at:
            (Path(notes)/'.note').write_text(str(trial.number))
            (Path(notes)/'.note').rename(Path(notes)/f'stalled-{os.getpid()}')
            time.sleep(600)
        time.sleep(seconds)
        (Path(notes)/f'done-{trial.number}-{os.getpid()}').touch()
        return value_of(params)
    run_trials(make_study(name, url, heartbeat=HEARTBEAT), objective, n_trials)


def report(name, url, notes):
    "Write down all trials of the study"
    from course_lib.tuning import make_study
    trials = [dict(number=t.number, state=t.state.name, value=t.value, params=t.params, worker=t.user_attrs.get('worker'), retry_of=t.system_attrs.get('failed_trial')) for t in make_study(name, url).trials]
    (Path(notes)/'report.json').write_text(json.dumps(trials))


def unsigned(name, url, notes, number):
    "Has the trial left no sign of life yet?"
    from course_lib.tuning import open_storage
    from sqlalchemy import text
    with open_storage(url).engine.connect() as connection:
        return not connection.execute(text('select count(*) from trial_heartbeats h join trials t on t.trial_id = h.trial_id where t.number = :n'), {'n': number}).scalar()


def mother():
    "Import once what is slow, then fork a worker for each line of stdin, or wait for one"
    import optuna

    with contextlib.suppress(ImportError): import psycopg  # noqa: F401, for the workers
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with tempfile.TemporaryDirectory() as folder: work('warm-up', folder, folder, 12)   # loads what Optuna and SQLAlchemy load late
    print('ready', flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        if 'wait' in job:
            print(os.waitstatus_to_exitcode(os.waitpid(job['wait'], 0)[1]), flush=True)
            continue
        pid = os.fork()
        if not pid:
            try:
                os._exit(globals()[job.pop('do')](**job) or 0)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
        print(pid, flush=True)
    if os.getpgrp() == os.getpid(): os.killpg(0, signal.SIGKILL)   # the tests are over, or were killed themselves: take the workers along


# --- the test's side ---
class Team:
    "Workers on one study"
    def __init__(self, process, name, url, notes): self.process, self.study = process, dict(name=name, url=str(url), notes=str(notes))

    def _say(self, **job):
        self.process.stdin.write(json.dumps(job) + '\n')
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def start(self, n_trials, **kw): return self._say(do='work', n_trials=n_trials, **kw, **self.study)
    def wait(self, pid): return self._say(wait=pid)

    def kill(self, pid):
        os.kill(pid, signal.SIGKILL)
        return self.wait(pid) == -signal.SIGKILL

    def run(self, n_trials):
        "One more process that goes on to `n_trials`"
        assert self.wait(self.start(n_trials)) == 0

    def trials(self):
        "As a new process reads them from the storage"
        assert self.wait(self._say(do='report', **self.study)) == 0
        return json.loads((Path(self.study['notes'])/'report.json').read_text())

    def stalled(self, pid):
        "Wait for a worker that hangs, and until its heartbeat has been stored; returns the number of the trial"
        number = int(self._wait_for(f'stalled-{pid}').read_text())
        for _ in range(60):
            if self.wait(self._say(do='unsigned', number=number, **self.study)) == 0: return number
            time.sleep(.5)
        pytest.fail('no heartbeat of a running trial')

    def begun(self, pid):
        "Wait until a worker has begun its first trial"
        self._wait_for(f'begun-*-{pid}')

    def finished(self, n):
        "Wait until the workers have finished n trials together"
        self._wait_for('done-*', n)

    def _wait_for(self, pattern, n=1):
        for _ in range(12_000):
            if len(found := list(Path(self.study['notes']).glob(pattern))) >= n: return found[0]
            time.sleep(.005)
        pytest.fail(f'fewer than {n} times {pattern} after a minute')

    def noted(self, what): return Counter(int(p.name.split('-')[1]) for p in Path(self.study['notes']).glob(f'{what}-*'))


@pytest.fixture(scope='module')
def workshop():
    pytest.importorskip('optuna', reason="optuna is not installed: pip install 'course_lib[course]'")
    with subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        process.is_ready = False   # `team` waits for it; meanwhile PostgreSQL can start
        try: yield process
        finally:
            with contextlib.suppress(ProcessLookupError): os.killpg(process.pid, signal.SIGKILL)   # the mother, and any worker that a failed test left behind


@pytest.fixture
def team(workshop, tmp_path):
    if not workshop.is_ready:
        assert workshop.stdout.readline() == 'ready\n', 'the process that forks the workers did not start; its error is above'
        workshop.is_ready = True
    return lambda name, url: Team(workshop, name, url, tmp_path)


def find_postgres():
    "The folder of PostgreSQL's programs, the newest if there are several"
    found = [p.parent for p in Path('/usr/lib/postgresql').glob('*/bin/postgres')] + [Path(p).resolve().parent for p in [shutil.which('postgres')] if p]
    return max(found, key=lambda p: [int(d) for d in p.parts if d.isdigit()], default=None)


@pytest.fixture(scope='module')
def postgres():
    "A PostgreSQL server of our own on a Unix socket; returns a function from a database's name to its URL, which makes the database"
    programs = find_postgres()
    if programs is None: pytest.skip('PostgreSQL is not installed: apt-get install postgresql')
    psycopg = pytest.importorskip('psycopg', reason="psycopg is not installed: pip install 'course_lib[scale]'")
    with contextlib.ExitStack() as resources:
        folder = resources.enter_context(tempfile.TemporaryDirectory(prefix='course_pg_', dir='/tmp'))   # short: a socket's path may have 107 letters
        who = {}
        if os.geteuid() == 0:   # postgres refuses to run as root
            import pwd
            account = pwd.getpwnam('postgres' if 'postgres' in [u.pw_name for u in pwd.getpwall()] else 'nobody')
            who = dict(user=account.pw_uid, group=account.pw_gid, extra_groups=[])
            os.chown(folder, account.pw_uid, account.pw_gid)
        log = resources.enter_context(open(Path(folder)/'log', 'w+'))
        common = dict(cwd=folder, stdout=log, stderr=log, **who)
        try: made = subprocess.run([programs/'initdb', '-D', f'{folder}/data', '-U', 'course', '-A', 'trust', '-E', 'UTF8', '--locale=C', '--no-sync'], **common)
        except PermissionError as e: pytest.skip(f'root may not become another user here, and PostgreSQL does not run as root ({e})')
        assert made.returncode == 0, Path(folder, 'log').read_text()
        libc = ctypes.CDLL(None)
        server = subprocess.Popen([programs/'postgres', '-D', f'{folder}/data', '-k', folder, '-c', 'listen_addresses=', '-c', 'fsync=off', '-c', 'max_connections=40', '-c', 'shared_buffers=16MB'], preexec_fn=lambda: libc.prctl(1, signal.SIGQUIT), **common)   # 1: PR_SET_PDEATHSIG, end even if the tests are killed

        def new(name):
            with psycopg.connect(host=folder, user='course', dbname='postgres', autocommit=True) as connection: connection.execute(f'create database {name}')
            return f'postgresql://course@/{name}?host={folder}'
        try:
            for _ in range(600):
                try: psycopg.connect(host=folder, user='course', dbname='postgres').close()
                except psycopg.OperationalError: time.sleep(.05)
                else: break
                assert server.poll() is None, Path(folder, 'log').read_text()
            else: pytest.fail(f'no answer from PostgreSQL: {Path(folder, "log").read_text()}')
            yield new
        finally:
            server.send_signal(signal.SIGQUIT)   # at once: nobody needs the data
            try: server.wait(30)
            except subprocess.TimeoutExpired: server.kill()
            server.wait()


def check(trials, n_trials, workers=1):
    "Numbers 0, 1, ... each once; parameters of each trial stored; each value that of its parameters; as many as asked for"
    assert [t['number'] for t in trials] == list(range(len(trials)))
    complete = [t for t in trials if t['state'] == 'COMPLETE']
    for t in complete: assert set(t['params']) == {'x', 'n'} and t['value'] == value_of(t['params']), t
    assert n_trials <= len(complete) < n_trials + workers, f'{len(complete)} complete trials, {n_trials} asked for'
    return complete


def test_four_workers_one_killed(team, postgres, capsys):
    team = team('shared', postgres('shared'))
    pids = [team.start(24, stall_at=2 if k == 0 else None, seconds=.1) for k in range(4)]   # all at once, on an empty database: each may have to make the tables
    orphan = team.stalled(pids[0])
    assert team.kill(pids[0])
    assert [team.wait(p) for p in pids[1:]] == [0, 0, 0]
    early = team.trials()
    check(early, 24, workers=4)

    time.sleep(2*HEARTBEAT + .5)   # the orphan's signs of life are surely too old
    team.run(30)                   # another day, another process
    trials = team.trials()
    complete = check(trials, 30)
    assert {t['worker'] for t in complete} > set(pids[1:]), 'all three survivors took part, and the late one'
    assert trials[orphan]['state'] == 'FAIL' and trials[orphan]['worker'] == pids[0] and trials[orphan]['value'] is None
    assert [t['number'] for t in trials if t['state'] != 'COMPLETE'] == [orphan]
    again = [t for t in trials if t['retry_of'] is not None]
    assert [(t['retry_of'], t['params'], t['state']) for t in again] == [(orphan, trials[orphan]['params'], 'COMPLETE')], 'tried again once, with the same settings'
    assert team.noted('begun') == Counter({t['number']: 1 for t in trials}), 'each trial was begun by one worker, once'
    assert team.noted('done') == Counter({t['number']: 1 for t in complete}), 'what a worker has finished is stored, once'
    kept = [t for t in early if t['state'] == 'COMPLETE']
    assert kept == [trials[t['number']] for t in kept], 'resuming leaves what was there'
    assert len({t['params']['x'] for t in trials if t['retry_of'] is None}) == len(trials) - 1, 'workers do not copy each other'
    with capsys.disabled(): print(f'\nPostgreSQL: {len(trials)} trials by {len({t["worker"] for t in trials})} processes; trial {orphan} of the killed one was found and tried again as {again[0]["number"]}')


def test_killed_at_random_moments(team, postgres, capsys):
    team = team('storm', postgres('storm'))
    rng, pids, kills = random.Random(), [team.start(1000) for _ in range(3)], 6
    for _ in range(kills - len(pids)):
        team.begun(pids[0])
        time.sleep(rng.uniform(0, .3))
        assert team.kill(pids.pop(0)), 'a worker ended by itself'
        pids.append(team.start(1000))
    team.begun(pids[-1])
    team.finished(kills + 1)   # of which each killed worker may have noted one that it could not store
    for pid in pids: assert team.kill(pid), 'a worker ended by itself'
    so_far = sum(t['state'] == 'COMPLETE' for t in team.trials())
    assert 0 < so_far < 1000
    time.sleep(2*HEARTBEAT + .5)
    found_in_the_storm = {t['number'] for t in team.trials() if t['state'] == 'FAIL'}
    team.run(so_far + 8)
    trials = team.trials()
    complete = check(trials, so_far + 8)
    states, begun, done = Counter(t['state'] for t in trials), team.noted('begun'), team.noted('done')
    for t in complete: assert begun[t['number']] == done[t['number']] == 1
    assert max(begun.values()) == 1
    first = lambda t: t['number'] if t['retry_of'] is None else t['retry_of']
    orphans, retried = {first(t) for t in trials if t['state'] == 'FAIL'}, {t['retry_of'] for t in trials if t['retry_of'] is not None}
    assert orphans >= retried >= {first(t) for t in trials if t['state'] == 'FAIL' and t['number'] not in found_in_the_storm}, 'what was found dead was tried again (unless its finder was killed, too, before it could)'
    assert states['FAIL'] + states['RUNNING'] <= kills, 'each killed worker had one trial at most'   # RUNNING: killed before its first sign of life, which Optuna cannot know
    with capsys.disabled(): print(f'\n{kills} kills at random moments: {dict(states)}')


def test_sqlite_resumes(team, tmp_path):
    shelf = tmp_path/'studies'
    team = team('alone', shelf)
    pid = team.start(10, stall_at=5)
    orphan = team.stalled(pid)
    assert orphan == 4 and team.kill(pid)
    before = team.trials()
    assert [t['state'] for t in before] == ['COMPLETE']*4 + ['RUNNING']
    time.sleep(2*HEARTBEAT + .5)
    team.run(10)
    trials = team.trials()
    check(trials, 10)
    assert trials[:4] == before[:4] and trials[4] == {**before[4], 'state': 'FAIL'}
    assert (trials[5]['retry_of'], trials[5]['params'], trials[5]['state']) == (4, trials[4]['params'], 'COMPLETE')   # the first thing that the new process does
    assert len(trials) == 11 and team.noted('done') == Counter({t: 1 for t in range(11) if t != 4})
    with sqlite3.connect(shelf/'studies.db') as db: assert db.execute('pragma integrity_check').fetchone() == ('ok',)
    team.run(10)
    assert team.trials() == trials, 'nothing was left to do'


if __name__ == '__main__': mother()
