"""Milliseconds that a training step costs more than in a hand-written loop, through fastai's Learner and through ours.

python benchmarks/step.py [--quick] [--rounds N]

A tiny CNN on the digits (8×8 pixels), in batches of 64. Every entry trains one epoch and validates on one batch; the Learners do it with recorder,
accuracy and progress bar on (what the bar prints is thrown away). The hand-written loops have none of that; each is measured with the optimizer
of the Learner beside it: fastai's Adam, or PyTorch's fused AdamW. `TensorDataLoader` makes the batches, but for fastai's own loader where it is named.
A Learner and its loop run at the same time but never at once: each waits while the other makes one step, so that both meet the same moments of a
machine that is now faster and now slower. A round gives the median of the differences of neighbouring steps. Printed are the medians over the rounds, with their
smallest and largest value, in milliseconds a step, and the same for whole runs, with all that comes before and after the steps, shared out over them.
(Where two workers make the batches, the runs follow each other: the workers must not gain time while the loop is at work.) All in one process, with
one torch thread. Results go to results/step.json.
"""
import contextlib
import statistics
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import partial

warnings.filterwarnings('ignore')

import torch
import torch.nn.functional as F
from _racing import options, save

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


class Turns:
    "Lets two jobs take turns, step by step, and notes how long each is at work between"
    def __init__(self, alone=False):
        self.alone, self.turn, self.ended, self.took, self.since = alone, [threading.Semaphore(0), threading.Semaphore(0)], [alone, alone], ([], []), [0., 0.]

    def over(self, me):
        "End of a stretch of work: the other goes on, until its own step is over"
        self.took[me].append(time.perf_counter() - self.since[me])
        if not self.ended[1 - me]:
            self.turn[1 - me].release()
            if not self.ended[me]: self.turn[me].acquire()
        self.since[me] = time.perf_counter()

    def work(self, me, job):
        "Run a job whose model calls `over` at the begin of every step"
        torch.set_num_threads(1)
        NOW.job = lambda: self.over(me)
        if not self.alone: self.turn[me].acquire()
        self.since[me] = time.perf_counter()
        try: job()
        finally:
            self.ended[me] = True
            self.over(me)

    def run(self, *jobs):
        "For each job (milliseconds of each step, milliseconds in all)"
        with ThreadPoolExecutor(2) as pool:
            if self.alone: [pool.submit(self.work, k, job).result() for k, job in enumerate(jobs)]
            else:
                both = [pool.submit(self.work, k, job) for k, job in enumerate(jobs)]
                self.turn[0].release()
                for job in both: job.result()
        return [([1000*t for t in took[1:-1]], 1000*sum(took)) for took in self.took]   # before the first and after the last call of the model is no step


NOW = threading.local()   # what the model tells that a step begins


def net():
    torch.manual_seed(0)
    model = small_cnn(10, width=16)
    def note(model, args):
        if model.training: NOW.job()
    model.register_forward_pre_hook(note)
    return model


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


def measure(entries, rounds):
    "{Learner: [((steps, whole) of its loop, (steps, whole) of the Learner), …]}; the first round warms up"
    pairs = {name: [] for name, *_ in GOALS}
    for r in range(rounds + 1):
        for name, loop, _ in GOALS: pairs[name].append(Turns(alone='2 workers' in name).run(entries[loop], entries[name]))
    return {name: found[1:] for name, found in pairs.items()}


def differences(pairs, steps):
    "Print and return what each Learner adds to a step of the loop beside it, in milliseconds"
    wide, table = max(len(name) for name, *_ in GOALS), {}
    print(f'\n{"ms a step over the loop (median of rounds)":{max(wide, 44)}} {"median":>8} {"min":>8} {"max":>8} {"share":>7} {"goal":>6}  {"reached":8} {"whole runs":>10}')
    for name, loop, goal in GOALS:
        extra = [statistics.median(b - a for a, b in zip(loops, learns)) for (loops, _), (learns, _) in pairs[name]]
        whole = statistics.median((b - a)/steps for (_, a), (_, b) in pairs[name])
        middle, base = statistics.median(extra), statistics.median(statistics.median(loops) for (loops, _), _ in pairs[name])
        table[f'{name}, over the {loop}'] = dict(median=middle, min=min(extra), max=max(extra), unit='ms a step', share=middle/base, limit=goal, reached=None if goal is None else middle <= goal, whole=whole)
        verdict = '' if goal is None else 'yes' if middle <= goal else 'no'
        print(f'{name:{max(wide, 44)}} {middle:8.3f} {min(extra):8.3f} {max(extra):8.3f} {middle/base:7.0%} {goal or "":>6}  {verdict:8} {whole:10.3f}')
    return table


def main():
    rounds, quick = options(__doc__, 12, 3, 'steps')
    steps = 20 if quick else 60
    torch.set_num_threads(1)
    pairs = measure(entries(steps*BS), rounds)
    found = {name: [statistics.median(learns) for _, (learns, _) in pairs[name]] for name in pairs}
    for name, loop, _ in GOALS: found.setdefault(loop, []).extend(statistics.median(loops) for (loops, _), _ in pairs[name])
    table = {name: dict(median=statistics.median(ms), lowest=min(ms), highest=max(ms)) for name, ms in sorted(found.items(), key=lambda item: statistics.median(item[1]))}
    print(f'{"ms a step":44} {"median":>8} {"lowest":>8} {"highest":>8}')
    for name, row in table.items(): print(f'{name:44} ' + ' '.join(f'{v:8.3f}' for v in row.values()))
    save('step', quick, ('torch', 'torchvision', 'fastai', 'numpy'), rounds=rounds, steps=steps, batch=BS, ms_a_step=table, limits=differences(pairs, steps))


if __name__ == '__main__': main()
