"""Milliseconds that a training step costs more than in a hand-written loop, through fastai's Learner and through ours.

python benchmarks/step.py [--quick] [--rounds N]

A tiny CNN on the digits (8×8 pixels), in batches of 64. Every entry trains one epoch and validates on one batch; the Learners do it with recorder,
accuracy and progress bar on (what the bar prints is thrown away). The hand-written loops have none of that; each is measured with the optimizer
of the Learner beside it: fastai's Adam, or PyTorch's fused AdamW. `TensorDataLoader` makes the batches, but for fastai's own loader where it is named.
The entries take turns, round after round, in one process with one torch thread. Printed are the medians of the differences within a round,
with their smallest and largest value, in milliseconds a step, and the median in processor time, which other programs disturb less.
Results go to results/step.json.
"""
import contextlib
import statistics
import warnings
from functools import partial

warnings.filterwarnings('ignore')

import torch
import torch.nn.functional as F
from _racing import options, race, save, speeds

from course_lib.dataloading import dataloaders
from course_lib.datasets import digits
from course_lib.tools.fast import FastLearner, FusedAdamW
from course_lib.tools.models import small_cnn

import fastai.callback.progress
import fastai.callback.schedule
from fastai.data.core import DataLoaders, TfmdDL
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from fastai.metrics import accuracy
from fastai.optimizer import Adam, OptimWrapper

BS, LR = 64, 1e-3


class Nothing:
    "Where the bars print to: a terminal that nobody looks at"
    def write(self, text): return len(text)
    def flush(self): pass
    def isatty(self): return True


def net():
    torch.manual_seed(0)
    return small_cnn(10, width=16)


def by_hand(dls, opt_func):
    "What many a tutorial writes; one run is one epoch"
    model = net()
    opt = opt_func(list(model.parameters()))
    def epoch():
        model.train()
        for xb, yb in dls.train:
            loss = F.cross_entropy(model(xb), yb)
            loss.backward()
            opt.step()
            opt.zero_grad()
        model.eval()
        with torch.no_grad():
            for xb, yb in dls.valid:
                pred = model(xb)
                F.cross_entropy(pred, yb).item(), (pred.argmax(1) == yb).float().mean().item()
    return epoch


def by_learner(kind, dls, opt_func, how='fit'):
    "The same with a Learner"
    learn = kind(dls, net(), CrossEntropyLossFlat(), opt_func=opt_func, metrics=accuracy)
    def epoch():
        with contextlib.redirect_stdout(Nothing()): getattr(learn, how)(1, LR)
    return epoch


def loaders(n):
    "(ours, fastai's without workers, fastai's with two) over the same n pictures, normalised alike"
    data, some = digits(), torch.Generator().manual_seed(0)
    train = data.subset(torch.randint(0, len(data) - BS, (n,), generator=some).numpy())
    valid = data.subset(range(len(data) - BS, len(data)))
    ours = dataloaders(train, valid, BS, device='cpu', drop_last=True)
    pictures = [[(x, y) for x, y in zip(ours[0].after_batch.fs[0].apply(part.images), part.labels)] for part in (train, valid)]
    return ours, *(DataLoaders(TfmdDL(pictures[0], BS, shuffle=True, drop_last=True, num_workers=w), TfmdDL(pictures[1], BS, num_workers=w), device='cpu') for w in (0, 2))


def entries(n):
    "{name: run} of everything that takes turns"
    ours, plain, workers = loaders(n)
    def fused(params): return torch.optim.AdamW(params, LR, (.9, .99), 1e-5, .01, fused=True)
    wrapped = partial(OptimWrapper, opt=partial(torch.optim.AdamW, betas=(.9, .99), eps=1e-5, fused=True))
    return {
        'loop, fastai Adam': by_hand(ours, lambda params: Adam(params, LR)),
        'loop, fused AdamW': by_hand(ours, fused),
        'FastLearner': by_learner(FastLearner, ours, Adam),
        'FastLearner, one-cycle': by_learner(FastLearner, ours, Adam, 'fit_one_cycle'),
        'FastLearner, fused': by_learner(FastLearner, ours, FusedAdamW),
        'FastLearner, fused, one-cycle': by_learner(FastLearner, ours, FusedAdamW, 'fit_one_cycle'),
        'fastai Learner': by_learner(Learner, ours, Adam),
        'fastai Learner, one-cycle': by_learner(Learner, ours, Adam, 'fit_one_cycle'),
        'fastai Learner, fused': by_learner(Learner, ours, wrapped),
        'fastai Learner and loader, 0 workers': by_learner(Learner, plain, Adam),
        'fastai Learner and loader, 2 workers': by_learner(Learner, workers, Adam),
    }


# (what, beside which loop, at most so many milliseconds more; None where it is not ours)
GOALS = [(name, f"loop, {'fused AdamW' if 'fused' in name else 'fastai Adam'}", .5 if name.startswith('FastLearner') else None)
         for name in ('FastLearner', 'FastLearner, one-cycle', 'FastLearner, fused', 'FastLearner, fused, one-cycle', 'fastai Learner', 'fastai Learner, one-cycle',
                      'fastai Learner, fused', 'fastai Learner and loader, 0 workers', 'fastai Learner and loader, 2 workers')]


def differences(seconds, steps):
    "Print and return what each Learner adds to a step of the loop beside it, in milliseconds"
    wide, table = max(len(name) for name, *_ in GOALS), {}
    print(f'\n{"ms a step over the loop (median of rounds)":{max(wide, 44)}} {"median":>8} {"min":>8} {"max":>8} {"share":>7} {"goal":>6}  {"reached":8} {"in processor time":>18}')
    for name, loop, goal in GOALS:
        wall, processor = ([1000*(a[k] - b[k])/steps for a, b in zip(seconds[name], seconds[loop])] for k in (0, 1))
        middle, base = statistics.median(wall), statistics.median(1000*b[0]/steps for b in seconds[loop])
        table[f'{name}, over the {loop}'] = dict(median=middle, min=min(wall), max=max(wall), unit='ms a step', share=middle/base, limit=goal, reached=None if goal is None else middle <= goal, processor=statistics.median(processor))
        verdict = '' if goal is None else 'yes' if middle <= goal else 'no'
        print(f'{name:{max(wide, 44)}} {middle:8.3f} {min(wall):8.3f} {max(wall):8.3f} {middle/base:7.0%} {goal or "":>6}  {verdict:8} {statistics.median(processor):18.3f}')
    return table


def main():
    rounds, quick = options(__doc__, 15, 3, 'steps')
    steps = 20 if quick else 60
    torch.set_num_threads(1)
    seconds = race(entries(steps*BS), rounds)
    save('step', quick, ('torch', 'torchvision', 'fastai', 'numpy'), rounds=rounds, steps=steps, batch=BS,
         ms_a_step=speeds(seconds, 'ms a step', lambda name, wall: 1000*wall/steps, 3), limits=differences(seconds, steps))


if __name__ == '__main__': main()
