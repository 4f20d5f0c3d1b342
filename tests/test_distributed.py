"Two processes train as one does: over gloo, started by torchrun and by accelerate, on loopback alone"
import runpy
import sys
import textwrap

import pytest

pytest.importorskip('accelerate', reason="accelerate is not installed: pip install 'course_lib[scale]'")

SECONDS = 300        # a launch takes about 10 s on two free cores; after this all its processes are ended
TOLERANCE = 1e-5     # of a weight: sums of gradients in another order; the weights are of the order of 0.1

TRAIN = '''
import sys
from functools import partial

import torch
import torch.nn.functional as F
from course_lib.dataloading import TensorDataLoader
from course_lib.datasets import digits
from course_lib.scaling import data_parallel
from fastai.callback.progress import ProgressCallback
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from fastai.metrics import accuracy
from fastai.optimizer import SGD
from fastai.torch_core import num_distrib, rank_distrib
from torch import nn

folder, rank, world = sys.argv[1], rank_distrib(), max(1, num_distrib())
data = digits()
X, y = data.images.float()/255, data.labels
torch.manual_seed(rank)                      # other weights on each rank: those of rank 0 must win
net = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
bs = 128//world                              # the same global batch
train = TensorDataLoader(X[:1280], y[:1280], bs=bs, shuffle=True, seed=0)
valid = TensorDataLoader(X[1280:1792], y[1280:1792], bs=bs)
learn = Learner(DataLoaders(train, valid, device='cpu'), net, loss_func=F.cross_entropy, opt_func=partial(SGD, mom=.9), metrics=accuracy)
start = torch.cat([p.detach().flatten() for p in net.parameters()])
odd = TensorDataLoader(X[1280:], y[1280:], bs=bs)     # 517 rows: the last batch must be filled up, and the filling left out again
with data_parallel(learn), learn.no_bar(), learn.no_logging():
    learn.fit(2, .1)
    log = list(learn.recorder.values[-1])    # get_preds adds a line of its own
    probs, target = learn.get_preds(dl=odd)
backend = torch.distributed.get_backend() if world > 1 else None
weights = torch.cat([p.detach().flatten() for p in learn.model.parameters()])
torch.save(dict(start=start, weights=weights, log=log, backend=backend, probs=probs, target=target), f'{folder}/{world}-{rank}.pt')
'''


def results(folder, world):
    import torch
    return [torch.load(folder/f'{world}-{rank}.pt', weights_only=True) for rank in range(world)]


@pytest.fixture(scope='module')
def script(tmp_path_factory):
    path = tmp_path_factory.mktemp('script')/'train.py'
    path.write_text(TRAIN)
    return path


@pytest.fixture(scope='module')
def alone(script):
    "One process with the global batch: this one, which has the imports behind it"
    with pytest.MonkeyPatch.context() as patch:
        for name in ('RANK', 'LOCAL_RANK', 'WORLD_SIZE'): patch.delenv(name, raising=False)
        patch.setattr(sys, 'argv', ['train.py', str(script.parent)])
        runpy.run_path(str(script), run_name='alone')
    return results(script.parent, 1)[0]


@pytest.mark.parametrize('how', ['torchrun', 'accelerate'])
def test_two_processes(how, script, alone, tmp_path, capsys):
    from course_lib.scaling import launch
    launch(script, [str(tmp_path)], processes=2, how=how, seconds=SECONDS)
    first, second = results(tmp_path, 2)
    assert first['backend'] == second['backend'] == 'gloo'
    assert not first['start'].equal(second['start']), 'the ranks began with different weights'
    assert first['weights'].equal(second['weights']), 'the same bits on both ranks'
    apart = (first['weights'] - alone['weights']).abs().max().item()
    assert apart < TOLERANCE, f'{apart} from the weights of one process'
    assert (alone['weights'] - alone['start']).abs().max() > 1000*TOLERANCE, 'it did learn'
    assert first['log'] == second['log'] and first['log'] == pytest.approx(alone['log'], abs=1e-4), 'losses and accuracy are those of all rows'
    for rank in (first, second):
        assert rank['target'].equal(alone['target']), 'all rows once, in order'
        assert (rank['probs'] - alone['probs']).abs().max() < 10*TOLERANCE
    with capsys.disabled(): print(f'\n{how}: weights at most {apart:.0e} from those of one process')


def test_failing_rank(tmp_path):
    from course_lib.scaling import launch
    script = tmp_path/'broken.py'
    script.write_text(textwrap.dedent('''
        import os, time
        if os.environ['RANK'] == '1': raise SystemExit('rank 1 has no data')
        time.sleep(600)
    '''))
    with pytest.raises(RuntimeError, match='(?s)broken.py failed in one of 2 processes.*rank 1 has no data'): launch(script, seconds=SECONDS)


def test_hanging_rank_leaves_nothing_behind(tmp_path):
    import psutil
    from course_lib.scaling import launch
    script = tmp_path/'hangs.py'
    script.write_text('import sys, os, time; open(f"{sys.argv[1]}/{os.environ[\'RANK\']}", "w").write(str(os.getpid())); time.sleep(600)')
    seconds = 5
    while True:      # a busy machine may need longer until both have begun
        with pytest.raises(TimeoutError, match='hangs.py had not finished'): launch(script, [str(tmp_path)], seconds=seconds)
        pids = [int((tmp_path/rank).read_text()) for rank in '01' if (tmp_path/rank).exists()]
        if len(pids) == 2 or seconds > 100: break
        seconds *= 2
    assert len(pids) == 2, 'both ranks ran'
    alive = [p for p in pids if psutil.pid_exists(p) and psutil.Process(p).status() != psutil.STATUS_ZOMBIE]
    assert not alive, 'their processes are ended with the launcher'
