"`course_lib train` killed with kill -9 and resumed ends with the same files, byte for byte"
import os
import random
import signal
import time

import pytest
from apart import APART

KILLS = 8
pytestmark = pytest.mark.skipif(os.name != 'posix', reason='kill -9 is for POSIX systems')


def train(folder, *more):
    "One command line, as a process of its own would run it"
    from course_lib.tools.cli import main
    os.chdir(folder)
    os.dup2(os.open('log.txt', os.O_WRONLY | os.O_CREAT | os.O_APPEND), 1)
    os.dup2(1, 2)
    main(['train', '--data', 'data', *(more or ['--folds', '2', '--members', '2', '--epochs', '10', '--bs', '32', '--groups', 'writer', '--device', 'cpu', '--test', 'test', '--out', 'run'])])


def files(run): return {p.relative_to(run).as_posix(): p.read_bytes() for p in run.rglob('*') if p.is_file()}


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    "Images, and the files and the seconds of a run that nobody disturbed"
    from course_lib.datasets import digits
    folder = tmp_path_factory.mktemp('whole')
    digits().subset(slice(0, 240)).to_folder(folder/'data')
    digits().subset(slice(240, 260)).to_folder(folder/'test')
    for job, args in ((os.getpid, ()), (train, (folder,))):   # the first one waits for the slow imports
        start = time.monotonic()
        process = APART.Process(target=job, args=args)
        process.start()
        process.join()
    assert process.exitcode == 0, (folder/'log.txt').read_text()
    return folder, files(folder/'run'), time.monotonic() - start


def test_killed_and_resumed(whole, tmp_path):
    folder, expected, seconds = whole
    for name in 'data', 'test': (tmp_path/name).symlink_to(folder/name)
    rng, kills, args = random.Random(0), 0, ()
    for _ in range(10*KILLS):
        process = APART.Process(target=train, args=(tmp_path, *args))
        process.start()
        process.join(None if kills == KILLS else rng.uniform(.2, seconds/4))
        if process.exitcode is not None: break
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        kills += 1
        if (tmp_path/'run/run.json').exists(): args = '--resume', '--out', 'run'
    log = (tmp_path/'log.txt').read_text()
    assert process.exitcode == 0, log
    assert kills >= KILLS//2 and 'Traceback' not in log
    assert files(tmp_path/'run') == expected


def test_nothing_to_resume(whole):
    folder, *_ = whole
    process = APART.Process(target=train, args=(folder, '--resume', '--out', 'run'))
    process.start()
    process.join()
    assert process.exitcode == 1 and 'no unfinished run' in (folder/'log.txt').read_text()
