"""Cross-validating small networks: all folds × seeds at once beside what a user would write instead.

python benchmarks/validation.py [--quick] [--rounds N]

Every table is one interleaved race: the entries take turns, round after round, in one process with one torch thread.
Printed are medians of the ratios within a round, with their smallest and largest value, and the median in processor time,
which does not count what other programs take. All entries of a race train the same networks on the same batches (fastai
draws other orders), and the race stops if their predictions differ by more than rounding. Results go to results/validation.json.
"""
import statistics
import warnings
from functools import partial

warnings.filterwarnings('ignore')

import torch
import torch.nn.functional as F
from _racing import options, race, ratios, save
from course_lib.dataloading import TensorDataLoader
from course_lib.datasets import digits
from course_lib.validation import kfold, make_folds, vmap_cross_validate
from fastai.callback.progress import ProgressCallback
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from torch import nn

BS, LR = 64, 1e-3


def mlp(width): return nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))


def cnn(size): return nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(2*size*size, 10))


def plain_loop(make, X, y, pairs, seeds, epochs, fused):
    "The loop as a tutorial writes it; [seeds, rows, classes]"
    probs = torch.empty(seeds, len(y), 10)
    for seed in range(seeds):
        for train, valid in pairs:
            torch.manual_seed(seed)
            model, order = make(), torch.Generator().manual_seed(seed)
            opt = torch.optim.AdamW(model.parameters(), lr=LR, fused=fused)
            for _ in range(epochs):
                for ix in train[torch.randperm(len(train), generator=order)].split(BS):
                    loss = F.cross_entropy(model(X[ix]), y[ix])
                    opt.zero_grad()
                    loss.backward()
                    opt.step()
            with torch.inference_mode(): probs[seed, valid] = model(X[valid]).softmax(1)
    return probs


def by_hand(width, X, y, pairs, seeds, epochs):
    "The MLP stacked by hand with bmm; folds must be of the same length or nearly so. The limit for vmap"
    models, orders, rows = [], [], [train for _ in range(seeds) for train, _ in pairs]
    for seed in range(seeds):
        for _ in pairs:
            torch.manual_seed(seed)
            models.append(mlp(width))
            orders.append(torch.Generator().manual_seed(seed))
    W1, b1, W2, b2 = (torch.stack([p.detach() for p in ps]).requires_grad_() for ps in zip(*(m.parameters() for m in models)))
    opt, longest = torch.optim.AdamW([W1, b1, W2, b2], lr=LR, fused=True), max(map(len, rows))
    real = torch.stack([(torch.arange(longest) < len(r)).float() for r in rows])
    weights = [w/w.sum(1, keepdim=True) for w in real.split(BS, 1)]
    def forward(x): return torch.baddbmm(b2[:, None], torch.baddbmm(b1[:, None], x, W1.mT).relu(), W2.mT)
    for _ in range(epochs):
        order = torch.stack([F.pad(r[torch.randperm(len(r), generator=g)], (0, longest - len(r)), value=int(r[0])) for r, g in zip(rows, orders)])
        for ix, w in zip(order.split(BS, 1), weights):
            out = forward(X.index_select(0, ix.flatten()).view(*ix.shape, -1))
            loss = F.cross_entropy(out.flatten(0, 1), y[ix.flatten()], reduction='none').view_as(w)
            opt.zero_grad()
            (loss*w).sum().backward()
            opt.step()
    probs, k = torch.empty(seeds, len(y), 10), 0
    with torch.inference_mode():
        for seed in range(seeds):
            for _, valid in pairs:
                h = (X[valid] @ W1[k].T + b1[k]).relu()
                probs[seed, valid] = (h @ W2[k].T + b2[k]).softmax(1)
                k += 1
    return probs


def fastai_learners(make, X, y, pairs, seeds, epochs, own_loader):
    "One Learner after the other, with fastai's own loader or our fast one"
    probs = torch.empty(seeds, len(y), 10)
    for seed in range(seeds):
        for train, valid in pairs:
            torch.manual_seed(seed)
            if own_loader: dls = DataLoaders(*(DataLoader(list(zip(X[ix], y[ix])), bs=BS, shuffle=s, num_workers=0) for ix, s in ((train, True), (valid, False))))
            else: dls = DataLoaders(*(TensorDataLoader(X[ix], y[ix], BS, shuffle=s) for ix, s in ((train, True), (valid, False))), device='cpu')
            learn = Learner(dls, make(), loss_func=CrossEntropyLossFlat())
            with learn.no_bar(), learn.no_logging():
                learn.fit(epochs, LR)
                probs[seed, valid] = learn.get_preds()[0]
    return probs


def same_predictions(rounding=1e-3):
    "For `race`: stop where an entry's predictions are not those of the plain loop, which comes first (fastai draws other orders)"
    expected = []
    def look(name, probs):
        probs = torch.as_tensor(probs)
        if not expected: expected.append(probs)
        worst = (probs - expected[0]).abs().max().item()
        if worst > rounding and 'fastai' not in name: raise SystemExit(f'{name}: predictions differ by {worst:.1e} from those of the plain loop')
    return look


def entries_for(make, X, y, k, seeds, epochs):
    "The loop twice, with AdamW as it comes and fused, and all at once"
    number = kfold(len(y), k, True)
    pairs = [tuple(torch.as_tensor(rows) for rows in pair) for pair in make_folds(number, len(y))]
    at_once = partial(vmap_cross_validate, make, X, y, number, seeds, epochs, LR, BS)
    return pairs, {
        'plain loop': lambda: plain_loop(make, X, y, pairs, seeds, epochs, None),
        'plain loop, fused AdamW': lambda: plain_loop(make, X, y, pairs, seeds, epochs, True),
        'vmap': lambda: at_once(method='vmap').by_seed,
        'auto': lambda: at_once().by_seed,
    }


def main():
    rounds, quick = options(__doc__, 5, 2, 'rows')
    n, epochs = (600, 1) if quick else (1797, 3)
    torch.set_num_threads(1)
    data = digits()
    X, y = data.images.flatten(1).float()[:n]/255, data.labels[:n]
    tables = {}
    pairs, entries = entries_for(partial(mlp, 64), X, y, 5, 4, epochs)
    del entries['auto']
    entries['stacked by hand (bmm)'] = lambda: by_hand(64, X, y, pairs, 4, epochs)
    entries['fastai Learners, TensorDataLoader'] = lambda: fastai_learners(partial(mlp, 64), X, y, pairs, 4, epochs, False)
    entries['fastai Learners, own DataLoader'] = lambda: fastai_learners(partial(mlp, 64), X, y, pairs, 4, epochs, True)
    tables['MLP 64-64-10, 5 folds × 4 seeds'] = race(entries, rounds, same_predictions())
    for width in (16, 32, 128, 256, 512):
        entries = entries_for(partial(mlp, width), X, y, 5, 4, 1)[1]
        del entries['auto']
        tables[f'MLP 64-{width}-10, 5 folds × 4 seeds'] = race(entries, rounds, same_predictions())
    for size, rows in ((8, 600), (16, 300), (32, 150)):
        images = digits(size)
        tables[f'CNN on {size}×{size}, 5 folds × 4 seeds'] = race(entries_for(partial(cnn, size), images.images[:rows]/255, images.labels[:rows], 5, 4, 1)[1], rounds, same_predictions())

    record = {}
    for table, seconds in tables.items():
        print(f'\n{table:40} {"seconds":>9} {"times the plain loop":>21} {"min":>7} {"max":>7} {"in processor time":>18}')
        record[table] = {}
        for name, s in seconds.items():
            wall, cpu = ([a[k]/b[k] for a, b in zip(seconds['plain loop'], s)] for k in (0, 1))
            record[table][name] = dict(seconds=statistics.median(t for t, _ in s), speed=statistics.median(wall), min=min(wall), max=max(wall), processor=statistics.median(cpu))
            print(f'{name:40} ' + '{seconds:9.3f} {speed:21.2f} {min:7.2f} {max:7.2f} {processor:18.2f}'.format(**record[table][name]))
    every = {f'{table}: {name}': s for table, entries in tables.items() for name, s in entries.items()}
    ours = [(table, 'auto' if 'auto' in entries else 'vmap') for table, entries in tables.items()]
    found = ratios(every, [(f'{table}: {name} over the plain loop', f'{table}: {name}', f'{table}: plain loop', 3 if '64-64-10' in table else None) for table, name in ours])
    save('validation', quick, ('torch', 'fastai', 'numpy', 'scikit-learn'), rounds=rounds, rows=n, epochs=epochs, batch_size=BS, ratios=found, tables=record)


if __name__ == '__main__': main()
