"fastai's callbacks and methods through `FastLearner`: whatever they do, what comes is what comes from fastai's own Learner, bit for bit on a CPU"
import contextlib
import io
import os
import random
import socket
import sys
import warnings
from functools import partial
from unittest import mock

import matplotlib
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from apart import APART
from torch import Tensor, nn

from course_lib.dataloading import dataloaders
from course_lib.datasets import digits
from course_lib.tools.batches import ImageTensors
from course_lib.tools.fast import FastLearner, FusedAdamW
from course_lib.tools.folds import Tick, augment
from course_lib.tools.models import small_cnn
from course_lib.training import EMA, Checkpointer, EarlyStopping, StopOnNaN

import fastai.callback.all as fc
from fastai.callback.core import Callback
from fastai.data.core import DataLoaders, TfmdDL
from fastai.distributed import DistributedDL
from fastai.learner import AvgSmoothLoss, Learner, Recorder, before_batch_cb, load_learner
from fastai.losses import CrossEntropyLossFlat, FocalLossFlat, LabelSmoothingCrossEntropy, LabelSmoothingCrossEntropyFlat, MSELossFlat
from fastai.metrics import F1Score, accuracy, rmse
from fastai.optimizer import SGD, Adam, OptimWrapper, RAdam, ranger

IMAGES = digits()


def loaders(n=160, bs=32, **kw): return dataloaders(IMAGES.subset(slice(0, n)), IMAGES.subset(slice(1700, 1780)), bs, device='cpu', **kw)


def seed():
    "Every source of luck starts anew"
    torch.manual_seed(3); random.seed(3); np.random.seed(3)


def from_items(labels):
    "Loaders of fastai's own kind, which has a generator of its own"
    seed()
    x = IMAGES.images.float()/255
    return DataLoaders(*(TfmdDL(ImageTensors(x[part], labels[part]), 32, shuffle=k == 0, num_workers=0) for k, part in enumerate((slice(0, 160), slice(1700, 1780)))), device='cpu')


def make(kind, cbs=None, dls=None, **kw):
    "A small Learner, the same at each call"
    seed()
    kw = dict(loss_func=CrossEntropyLossFlat(), metrics=accuracy) | kw
    return kind(dls or loaders(train_tfm=augment), small_cnn(10, width=4), cbs=cbs, **kw)


def plain(o):
    "Something that can be compared with ==, where NaN is NaN"
    if isinstance(o, (Tensor, np.ndarray)): return str(o.dtype), o.tolist() if o.size == 0 else np.asarray(o.detach().cpu() if isinstance(o, Tensor) else o).tobytes().hex()
    if isinstance(o, dict): return {str(k): plain(v) for k, v in o.items()}
    if isinstance(o, (list, tuple)) or type(o).__name__ == 'L': return [plain(v) for v in o]
    return repr(o.item() if isinstance(o, np.generic) else o) if isinstance(o, (float, int, str, bool, type(None), np.generic)) else type(o).__name__


def came(learn):
    "All that a training leaves behind"
    rec, opt = vars(learn).get('recorder'), learn.opt
    out = dict(weights=learn.model.state_dict(), luck=[torch.rand(1), random.random(), np.random.rand()], training=learn.model.training,
               counters=[vars(learn).get(k) for k in ('train_iter', 'pct_train', 'epoch', 'n_epoch', 'iter', 'n_iter', 'final_record', 'smooth_loss')])
    if opt is not None: out |= dict(state=opt.state_dict(), hypers=opt.hypers, grads=[p.grad for p in learn.model.parameters()])
    if rec is not None: out |= {k: vars(rec).get(k) for k in ('losses', 'lrs', 'iters', 'values', 'hps', 'metric_names', 'log')} | dict(smooth=[rec.smooth_loss.count, rec.smooth_loss.val])
    if out.get('log') and rec.add_time: out['log'] = out['log'][:-1] # without the seconds
    return plain(out)


def quietly(learn, do):
    "Run without a bar; what is printed is thrown away"
    with learn.no_bar(), learn.no_logging(), warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter('ignore')
        return do(learn)


def same(do, tmp_path, **kw):
    "`do(learn)` by both; it may return something that is compared, too. `kw` are arguments of the Learner, made anew for each by a function"
    both = []
    for kind in (Learner, FastLearner):
        learn = make(kind, path=tmp_path/kind.__name__, **{k: v() for k, v in kw.items()})
        learn.path.mkdir()
        result = quietly(learn, do)
        both.append((plain(result), came(learn), [(cb.name, type(cb).__name__, cb.run) for cb in learn.cbs]))
    theirs, ours = both
    assert ours[0] == theirs[0]
    for part in theirs[1]: assert ours[1][part] == theirs[1][part], part
    assert ours[2] == theirs[2]
    return learn


def cycle(learn): learn.fit_one_cycle(3, .01)
def groups(model): return [list(model[:3].parameters()), list(model[3:6].parameters()), list(model[6:].parameters())]


# --- schedules, and other ways to train ---
WAYS = dict(
    fit=lambda learn: learn.fit(2, .01), fit_wd=lambda learn: learn.fit(2, .01, wd=.2), fit_start=lambda learn: learn.fit(3, .01, start_epoch=1), one_cycle=cycle,
    slices=lambda learn: learn.fit_one_cycle(2, slice(1e-4, 1e-2)), flat_cos=lambda learn: learn.fit_flat_cos(2, .01), sgdr=lambda learn: learn.fit_sgdr(2, 1, .01),
    fine_tune=lambda learn: learn.fine_tune(2, .01), frozen=lambda learn: (learn.freeze(), learn.fit(1, .01), learn.unfreeze(), learn.fit(1, .001), learn.freeze_to(1), learn.fit(1)),
    again=lambda learn: (learn.fit_one_cycle(1, .01), learn.fit(1, reset_opt=True), learn.fit(0)),
    scheduler=lambda learn: learn.fit(2, cbs=fc.ParamScheduler(dict(lr=fc.combine_scheds([.3, .3, .4], [fc.SchedLin(1e-3, 1e-2), fc.SchedCos(1e-2, 1e-3), fc.SchedExp(1e-3, 1e-5)]), wd=fc.SchedLin(.1, 0.)))),
    schedule_a_group=lambda learn: learn.fit(2, cbs=fc.ParamScheduler(dict(lr=lambda pos: [1e-3*pos, 1e-2, 1e-2*pos]))),
    lr_find=lambda learn: (learn.lr_find(num_it=30, show_plot=False), learn.fit(1)), lr_find_stops=lambda learn: learn.lr_find(num_it=60, end_lr=1e6, show_plot=False))


@pytest.mark.parametrize('way', WAYS)
def test_ways_to_train(way, tmp_path): same(WAYS[way], tmp_path, splitter=lambda: groups)


@pytest.mark.parametrize('opt', [SGD, partial(SGD, mom=.9), RAdam, ranger, partial(OptimWrapper, opt=torch.optim.AdamW), partial(OptimWrapper, opt=partial(torch.optim.SGD, momentum=.9)), FusedAdamW], ids=['SGD', 'SGD, momentum', 'RAdam', 'ranger', 'wrapped AdamW', 'wrapped SGD', 'FusedAdamW'])
def test_optimizers(opt, tmp_path): same(cycle, tmp_path, opt_func=lambda: opt)


# --- fastai's callbacks ---
class Fail(Callback):
    "Raise when an event comes for the n-th time"
    def __init__(self, at, error, when=2, order=0): self.at, self.error, self.when, self.order, self.count = at, error, when, order, 0
    def check(self, name):
        self.count += name == self.at
        if name != self.at: return
        if self.count == self.when: raise self.error


for _name in vars(fc.event):
    if _name[0] != '_': setattr(Fail, _name, lambda self, name=_name: self.check(name))


class Twist(Callback):
    "Make the loss NaN at one step"
    order = -20
    def after_loss(self):
        if self.learn.training and self.learn.train_iter == 6: self.learn.loss_grad, self.learn.loss = self.learn.loss_grad*torch.nan, self.learn.loss*torch.nan


CALLBACKS = dict(
    accumulation=lambda: fc.GradientAccumulation(80), clip=lambda: fc.GradientClip(.1), both=lambda: [fc.GradientAccumulation(64), fc.GradientClip(.05)],
    mixup=lambda: fc.MixUp(.4), cutmix=lambda: fc.CutMix(1.), mixup_accumulated=lambda: [fc.MixUp(), fc.GradientAccumulation(64)],
    stops_early=lambda: fc.EarlyStoppingCallback(monitor='accuracy', min_delta=2., patience=1), saves=lambda: fc.SaveModelCallback(monitor='accuracy', every_epoch=True),
    saves_best=lambda: fc.SaveModelCallback(monitor='valid_loss', with_opt=True), plateau=lambda: fc.ReduceLROnPlateau(monitor='valid_loss', min_delta=5., patience=1, factor=3),
    tracks=lambda: fc.TrackerCallback(monitor='train_loss'), nan=lambda: [Twist(), fc.TerminateOnNaNCallback()], nan_goes_on=Twist, bn_freeze=lambda: fc.BnFreeze(),
    log=lambda: fc.CSVLogger('log.csv'), short=lambda: fc.ShortEpochCallback(.5), fetches=lambda: fc.FetchPredsCallback(with_decoded=True), statistics=lambda: fc.ActivationStats(with_hist=True),
    fp16=lambda: fc.MixedPrecision(), bf16=lambda: fc.MixedPrecision('bf16'), channels_last=lambda: fc.ChannelsLast(), before_batch=lambda: before_batch_cb(lambda self, xb, yb: ((xb[0]*.5,), yb)),
    functions=lambda: Callback(after_loss=lambda self: setattr(self.learn, 'loss_grad', self.learn.loss_grad*2)),
    ours=lambda: [EMA(.9), EarlyStopping(patience=1), Tick(lambda: torch.rand(3)), StopOnNaN()])


@pytest.mark.parametrize('name', CALLBACKS)
def test_callbacks(name, tmp_path):
    learn = same(cycle, tmp_path, cbs=CALLBACKS[name])
    if name == 'stops_early': assert len(learn.recorder.values) == 2   # they did what they are for
    if name == 'nan': assert len(learn.recorder.losses) == 6
    if name == 'log':
        tables = [[row.rsplit(',', 1)[0] for row in (tmp_path/kind/'log.csv').read_text().splitlines()] for kind in ('Learner', 'FastLearner')] # without the seconds
        assert tables[0] == tables[1] and len(tables[0]) == 4
    if name == 'saves': assert sorted(p.name for p in (tmp_path/'FastLearner/models').iterdir()) == ['model_0.pth', 'model_1.pth', 'model_2.pth']
    if name == 'fetches': assert len(learn.fetch_preds.preds[0]) == 80
    if name == 'statistics': assert len(learn.activation_stats.stats) == 15


CANCELS = dict(CancelStepException=['before_step'], CancelBackwardException=['before_backward'], CancelBatchException=['before_batch', 'after_pred', 'after_loss', 'before_backward', 'before_step', 'after_backward'],
               CancelTrainException=['before_train', 'before_batch', 'after_loss', 'after_step', 'after_batch'], CancelValidException=['before_validate', 'before_batch', 'after_batch'],
               CancelEpochException=['before_epoch', 'before_train', 'after_loss', 'after_batch', 'before_validate'], CancelFitException=['before_fit', 'before_epoch', 'after_backward', 'after_batch', 'after_epoch'])


@pytest.mark.parametrize('error, at', [(error, at) for error, places in CANCELS.items() for at in places])
def test_cancelled(error, at, tmp_path):
    "In the middle of it, before and after fastai's own callbacks"
    when = 6 if error == 'CancelValidException' and 'batch' in at else 1 if at == 'before_fit' else 2   # five training batches come first
    for order in (-30, 90):
        folder = tmp_path/str(order)
        folder.mkdir()
        same(lambda learn: learn.fit(3, .01), folder, cbs=lambda: Fail(at, getattr(fc, error), when, order))


def test_errors_say_the_same(tmp_path):
    said = []
    for kind in (Learner, FastLearner):
        learn = make(kind, cbs=Fail('after_backward', RuntimeError('out of paint'), 4))
        with pytest.raises(RuntimeError) as e: quietly(learn, cycle)
        said.append((str(e.value), came(learn)))
    assert said[0] == said[1] and 'Exception occured in `Fail` when calling event `after_backward`' in said[1][0]


# --- losses, metrics, other methods ---
@pytest.mark.parametrize('loss', [F.cross_entropy, nn.CrossEntropyLoss(label_smoothing=.1), CrossEntropyLossFlat(label_smoothing=.1), LabelSmoothingCrossEntropy(), LabelSmoothingCrossEntropyFlat(), FocalLossFlat()], ids=lambda o: getattr(o, '__name__', type(o).__name__)) # no addresses: both workers must know the same names
def test_losses(loss, tmp_path): same(lambda learn: (cycle(learn), learn.get_preds(with_loss=True)), tmp_path, loss_func=lambda: loss)


def test_regression():
    both = []
    for kind in (Learner, FastLearner):
        learn = kind(from_items(IMAGES.labels.float().unsqueeze(1)/9), small_cnn(1, width=4), MSELossFlat(), metrics=[rmse, lambda p, y: (p - y).abs().mean()])
        quietly(learn, cycle)
        both.append(came(learn))
    assert both[0] == both[1]


def test_metrics(tmp_path):
    learn = same(cycle, tmp_path, metrics=lambda: [accuracy, F1Score(average='macro'), lambda p, y: 1., AvgSmoothLoss()])
    assert len(learn.recorder.values[-1]) == 6
    def both_sides(learn):
        learn.recorder.train_metrics = True
        cycle(learn)
        return learn.recorder.metric_names
    (tmp_path/'again').mkdir()
    assert len(same(both_sides, tmp_path/'again').recorder.values[-1]) == 4
    (tmp_path/'bare').mkdir()
    same(lambda learn: (learn.remove_cb(Recorder), learn.remove_cb(fc.ProgressCallback), learn.fit(1))[2], tmp_path/'bare', metrics=list)


METHODS = dict(validate=lambda learn: learn.validate(), validate_train=lambda learn: learn.validate(0), get_preds=lambda learn: learn.get_preds(with_input=True, with_loss=True, with_decoded=True),
               preds_of_train=lambda learn: learn.get_preds(0, with_loss=True), predict=lambda learn: learn.predict(IMAGES.images[5])[1:], tta=lambda learn: learn.tta(n=2),
               test_dl=lambda learn: learn.get_preds(dl=learn.dls.test_dl(IMAGES.images[:50])), test_dl_labels=lambda learn: learn.validate(dl=learn.dls.test_dl(IMAGES.subset(slice(0, 50)))),
               show=lambda learn: learn.show_results(max_n=4), saved=lambda learn: (learn.save('here'), learn.fit(1), learn.load('here'), learn.fit(1))[3],
               loop=lambda learn: learn.show_training_loop(), extra=lambda learn: learn.validate(cbs=fc.TrackerCallback()))


@pytest.mark.parametrize('name', METHODS)
def test_methods(name, tmp_path):
    with matplotlib.rc_context({'backend': 'agg'}): same(lambda learn: (learn.fit(1, .01), METHODS[name](learn), learn.fit(1, .01))[1], tmp_path)


def test_exported(tmp_path):
    def cross(learn):
        cycle(learn)
        learn.export('model.pkl')
        back = load_learner(learn.path/'model.pkl')
        assert type(back) is type(learn)
        back.dls = loaders()
        return back.get_preds()
    same(cross, tmp_path)


def test_with_bar_and_graph():
    "The bar shows the loss, the table the same numbers, with fastai's bars for a terminal and for notebooks"
    tables = []
    for kind in (Learner, FastLearner):
        learn = make(kind, cbs=fc.ShowGraphCallback())
        with contextlib.redirect_stdout(io.StringIO()) as shown: learn.fit_one_cycle(2, .01)
        rows = [line.split()[:4] for line in shown.getvalue().replace('\r', '\n').splitlines() if line[:1] in ('0', '1')]
        tables.append((rows, came(learn)))
        if kind is FastLearner: assert f'{learn.smooth_loss:.4f}' in shown.getvalue() # fastai's is a step behind
    assert tables[0] == tables[1] and len(tables[0][0]) == 2


def test_callbacks_that_come_and_go(tmp_path):
    def do(learn):
        with learn.added_cbs(fc.GradientClip(.1)): learn.fit(1)
        with learn.removed_cbs(learn.cbs.filter(lambda cb: cb.name == 'cast_to_tensor')): learn.fit(1)
        late = Callback()
        learn.add_cb(late)
        late.after_pred = lambda: setattr(learn, 'pred', learn.pred*2)
        learn.fit(1)
        late.run_valid = False
        learn.fit(1)
        late.run = False
        learn.fit(1)
        assert late.run
        learn.remove_cb(late)
        learn.cbs.append(fc.GradientAccumulation(64)); learn.cbs[-1].learn = learn
        learn.fit(1)
    same(do, tmp_path)


@pytest.mark.parametrize('first, then', [(Learner, FastLearner), (FastLearner, Learner), (FastLearner, FastLearner)])
def test_one_continues_what_the_other_began(first, then, tmp_path):
    def run(kind, folder, cbs=()):
        learn = make(kind, cbs=[EMA(.9), Checkpointer(folder), *cbs])
        with contextlib.suppress(KeyboardInterrupt): quietly(learn, cycle)
        return came(learn)
    whole, broken = run(Learner, tmp_path/'whole'), run(first, tmp_path/'broken', [Fail('after_batch', KeyboardInterrupt, 13)])
    assert len(broken['values']) == 1
    assert run(then, tmp_path/'broken') == whole


# --- several processes ---
def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


def one_of(rank, n, port, pipe):
    "One process of `distrib_ctx`, on the CPU: both Learners in turn"
    os.environ |= dict(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(n), MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port))
    torch.set_num_threads(1)
    warnings.simplefilter('ignore')
    def shared(self, t, rank): # fastai moves them to a GPU, which NCCL needs
        t = torch.tensor(t)
        torch.distributed.broadcast(t, rank)
        return t.tolist()
    out = []
    with mock.patch.object(DistributedDL, '_broadcast', shared):
        for kind in (Learner, FastLearner):
            learn = make(kind, dls=from_items(IMAGES.labels))
            with learn.no_bar(), learn.no_logging(), learn.distrib_ctx(sync_bn=False, cpu=True): learn.fit_one_cycle(1, .01)
            out.append(came(learn))
    pipe.send((out[0] == out[1], [k for k in out[0] if out[0][k] != out[1][k]], out[1]['weights'], out[1]['values']))


@pytest.mark.skipif(sys.platform != 'linux', reason='forks from one process that has fastai imported, which is safe on Linux only')
def test_distributed():
    "As far as it goes without GPUs: gloo between two processes on this machine"
    pytest.importorskip('accelerate')
    port, running = free_port(), []
    for rank in range(2):
        here, there = APART.Pipe(duplex=False)
        process = APART.Process(target=one_of, args=(rank, 2, port, there))
        process.start()
        there.close()
        running.append((here, process))
    said = []
    for here, process in running:
        assert here.poll(240)
        said.append(here.recv())
        process.join()
    assert all(equal for equal, *_ in said), [names for _, names, *_ in said]
    assert said[0][2:] == said[1][2:]   # both processes have the same weights and values


# --- on a GPU ---
@pytest.mark.cuda
@pytest.mark.parametrize('opt_func', [Adam, FusedAdamW])
def test_no_waiting_on_a_gpu(opt_func):
    "Between the first steps and the last ones of a pass, nothing may wait for the GPU (torch raises an error if something does), with bar, schedule and metric on"
    class NoWait(Callback):
        order = 99
        def after_batch(self): torch.cuda.set_sync_debug_mode('error' if 3 <= self.learn.iter < self.learn.n_iter - 2 else 'default')
        def after_train(self): torch.cuda.set_sync_debug_mode('default')
        after_validate = after_train
    dls = dataloaders(IMAGES.subset(slice(0, 1280)), IMAGES.subset(slice(1280, 1797)), 32, device='cuda')
    learn = FastLearner(dls, small_cnn(10, width=4), CrossEntropyLossFlat(), opt_func=opt_func, metrics=accuracy, cbs=NoWait())
    with mock.patch('fastprogress.fastprogress.ProgressBar.update_every', 1e9): learn.to_bf16().fit_one_cycle(2, .01)
    assert len(learn.recorder.losses) == 80 and all(o.device.type == 'cpu' for o in learn.recorder.losses)
    assert learn.recorder.values[-1][2] > .5
    plain_learn = Learner(dls, small_cnn(10, width=4), CrossEntropyLossFlat(), opt_func=opt_func, metrics=accuracy, cbs=NoWait())
    with pytest.raises(RuntimeError, match='synchroniz'): plain_learn.fit(1)
    torch.cuda.set_sync_debug_mode('default')
