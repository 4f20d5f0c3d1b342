"Training that is killed: with `kill -9` at random moments, at every step of a write, and by a full disk; it resumes and ends with the same bits"
import contextlib
import hashlib
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from apart import APART

pytestmark = pytest.mark.skipif(sys.platform != 'linux', reason='forks trainings from one process that has fastai imported, which is safe on Linux only')

EPOCHS, KILLS = 14, 20
STEPS = [(os, 'open'), (os, 'mkdir'), (os, 'fsync'), (os, 'replace'), (os, 'rename'), (os, 'unlink'), (os, 'rmdir'), (shutil, 'rmtree')]   # what a write is made of


def train(folder, epochs=EPOCHS, before=lambda learn: None, **kw):
    "A small training in which everything draws: shuffling, moving images, dropout, NumPy and Python; returns a digest of all that came out"
    import numpy as np
    import torch
    from fastai.callback.core import Callback
    from fastai.learner import Learner
    from fastai.losses import CrossEntropyLossFlat

    from course_lib.dataloading import dataloaders
    from course_lib.datasets import digits
    from course_lib.tools.folds import augment
    from course_lib.tools.models import small_cnn
    from course_lib.training import EMA, Checkpointer, EarlyStopping, seed_everything

    class Noise(Callback):
        def before_batch(self): self.learn.xb = (self.x + .01*(random.random() + np.random.rand()),)

    torch.set_num_threads(1)
    seed_everything(1)
    dls = dataloaders(digits().subset(slice(0, 96)), digits().subset(slice(96, 128)), 32, train_tfm=augment, device='cpu')
    learn = Learner(dls, small_cnn(10, width=4), loss_func=CrossEntropyLossFlat(), cbs=[Noise, ema := EMA(.9), EarlyStopping(patience=epochs)])
    before(learn)
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(epochs, .01, cbs=Checkpointer(folder, **kw) if folder else None)
    bits = [t.numpy().tobytes() for model in (learn.model, ema.average) for t in model.state_dict().values()]
    bits += [repr([list(row) for row in learn.recorder.values]).encode(), torch.stack(learn.recorder.losses).numpy().tobytes(), repr((torch.rand(1).item(), random.random(), np.random.rand())).encode()]
    return hashlib.sha256(b''.join(bits)).hexdigest()


def work(pipe, job, args):
    "In the process apart: run, and tell what came; silent"
    with open(os.devnull, 'w') as null, contextlib.redirect_stdout(null), contextlib.redirect_stderr(null):
        try: pipe.send(('done', job(*args)))
        except Exception as e: pipe.send((type(e).__name__, str(e)))


def run_apart(job, *args, meanwhile=lambda process: None):
    "(what came or None, was it killed?) of a job in a process of its own"
    here, there = APART.Pipe(duplex=False)
    process = APART.Process(target=work, args=(there, job, args))
    process.start()
    there.close()
    meanwhile(process)
    try: came = here.recv()
    except EOFError: came = None
    process.join()
    return came, process.exitcode == -signal.SIGKILL


# --- what runs in the processes apart ---
def time_of_epoch(folder):
    "Seconds from one epoch to the next"
    start = []
    train(folder, before=lambda learn: start.append(time.perf_counter()))
    return (time.perf_counter() - start[0])/EPOCHS


def dies_at(folder, n):
    "A training of few epochs that kills itself with SIGKILL just before step `n` of its writing; returns the number of steps it took"
    count = [0]

    def mortal(step):
        def call(*args, **kw):
            if isinstance(args[0], int) or 'fit1-epoch' in str(args[0]) or 'dir_fd' in kw:
                if count[0] == n: os.kill(os.getpid(), signal.SIGKILL)
                count[0] += 1
            return step(*args, **kw)
        return call

    def arm(learn):
        for module, name in STEPS: setattr(module, name, mortal(getattr(module, name)))
    train(folder, 4, arm, keep=1)
    return count[0]


def few_epochs(folder): return train(folder, 4, keep=1)


def with_quota(folder):
    "A training whose files may not grow beyond 2,000 bytes from epoch 3 on: the system refuses longer ones, as a full disk does"
    def arm(learn):
        from fastai.callback.core import Callback

        class Quota(Callback):
            def before_epoch(self):
                if self.epoch == 3: resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        learn.add_cb(Quota())
    return train(folder, before=arm)


# --- the tests ---
@pytest.fixture(scope='module')
def reference():
    "What a training gives that nothing disturbs, and that keeps no checkpoints"
    came, _ = run_apart(train, None)
    assert came[0] == 'done', came
    return came


def leftovers(folder): return sorted(p.name for p in Path(folder).iterdir() if p.name[0] == '.') if Path(folder).exists() else []


def test_killed_at_random_moments(tmp_path, reference, capsys):
    (_, epoch), _ = run_apart(time_of_epoch, tmp_path/'length')
    rng, hits, halves = random.Random(), 0, 0
    for k in range(KILLS):
        folder, n = tmp_path/f'run{k}', rng.randrange(1, EPOCHS - 2)
        if k % 2: sign, after = folder/f'.fit1-epoch{n:04d}.part', rng.uniform(0, .2)*epoch   # every second kill: while this one is written
        else: sign, after = folder/f'fit1-epoch{n:04d}', rng.uniform(0, 1)*epoch              # else: at any time in the epoch that follows

        def kill(process):
            while process.is_alive() and not sign.exists(): time.sleep(.0005)
            time.sleep(after)
            with contextlib.suppress(ProcessLookupError): os.kill(process.pid, signal.SIGKILL)

        came, killed = run_apart(train, folder, meanwhile=kill)
        hits += killed and came is None
        halves += bool(leftovers(folder))
        assert run_apart(train, folder)[0] == reference, f'killed {after:.4f} s after {sign.name} appeared'
        assert not leftovers(folder), f'killed {after:.4f} s after {sign.name} appeared'
    with capsys.disabled(): print(f'\n{hits} of {KILLS} kills hit a running training, {halves} of them the middle of a write')
    assert hits >= 15 and halves >= 3


def test_killed_at_every_step_of_a_write(tmp_path):
    (_, expected), _ = run_apart(few_epochs, tmp_path/'whole')
    (_, steps), _ = run_apart(dies_at, tmp_path/'counted', -1)
    assert steps > 40, 'a write is made of more steps than that'
    second = range(steps//4, steps//2 + 1)   # of four epochs; the second one writes, and deletes one
    for n in second:
        came, killed = run_apart(dies_at, tmp_path/f'run{n}', n)
        assert killed and came is None, came
        assert run_apart(few_epochs, tmp_path/f'run{n}')[0] == ('done', expected), f'killed before step {n} of {steps}'


def check_stopped(came, folder):
    "The error says which file and what to do; the last checkpoint is whole"
    assert came[0] == 'CheckpointError' and 'could not be written' in came[1] and 'make room' in came[1] and str(folder/'fit1-epoch') in came[1], came
    whole = sorted(folder.glob('fit1-epoch*'))
    assert whole and f'The last whole checkpoint is {whole[-1].name}' in came[1] and not leftovers(folder)


def test_quota(tmp_path, reference):
    came, _ = run_apart(with_quota, tmp_path)
    check_stopped(came, tmp_path)
    assert 'epoch0004/model.safetensors' in came[1]
    assert run_apart(train, tmp_path)[0] == reference


@pytest.fixture
def small_disk(tmp_path):
    "A file system of half a megabyte"
    if os.geteuid() != 0: pytest.skip('only root may mount a small file system; test_quota covers the same without')
    done = subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=512k', 'tmpfs', tmp_path], capture_output=True, text=True)
    if done.returncode: pytest.skip(f'mount is not allowed here ({done.stderr.strip()}); test_quota covers the same without')
    yield tmp_path
    subprocess.run(['umount', '--lazy', tmp_path], check=True)


def fill(folder, free):
    "Leave so many bytes free"
    (folder/'filler').write_bytes(bytes(max(0, shutil.disk_usage(folder).free - free)))


def test_full_disk(small_disk, reference):
    folder = small_disk/'run'
    fill(small_disk, 130_000)
    came, _ = run_apart(train, folder)
    if came[0] == 'done': pytest.fail('the disk was meant to be too small')
    check_stopped(came, folder)
    (small_disk/'filler').unlink()
    assert run_apart(train, folder)[0] == reference
