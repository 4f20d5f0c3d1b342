"""Training on a GPU: our path beside a loop by hand, fastai as it comes, and a loop made of timm's parts.

python benchmarks/gpu.py [--quick] [--rounds N] [--device cuda]

Needs an NVIDIA GPU; without one it says so and measures nothing. The entries take turns, round after round, and each run ends when the GPU has
finished; the first round warms up and compiles. All networks are torchvision's, in bfloat16 (autocast) and channels_last, and learn from the same
random bytes, which are normalised on the GPU. "By hand", and ours, read them from the GPU's own memory; "from the host" they lie in the machine's
memory; fastai's own loader and timm's prefetcher read them there image by image, with workers. Model FLOP utilisation is the share of the card's
rate that the training needs at least: three times the operations of a forward pass, over the rate of a large matrix product measured here.
`--quick --device cpu` goes through everything once with tiny images, to see that the script works. Results go to results/gpu.json.
"""
import argparse
import os
import statistics
import time
import warnings
from functools import partial

warnings.filterwarnings('ignore')

import torch
import torch.nn.functional as F
import torchvision
from _racing import race, ratios, save, speeds
from course_lib.dataloading import NormalizeImages, TensorDataLoader
from course_lib.tools.fast import FastLearner, FusedAdamW
from course_lib.tools.models import small_cnn
from course_lib.validation import vmap_cross_validate
from fastai.callback.core import Callback, CancelValidException
from fastai.callback.fp16 import AMPMode, MixedPrecision
from fastai.callback.progress import ProgressCallback   # gives Learner its no_bar
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from fastai.metrics import accuracy
from timm.data.loader import PrefetchLoader, fast_collate
from timm.optim import create_optimizer_v2
from timm.utils import AverageMeter
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

LR, MEAN, STD = 1e-3, (.485, .456, .406), (.229, .224, .225)


def wait(device):
    if device.type == 'cuda': torch.cuda.synchronize()


def finished(run, device):
    "The same run, over when the GPU is"
    def whole():
        run()
        wait(device)
    return whole


def matmul_rate(device, dtype, n):
    "Multiply-adds a second of an n × n matrix product, counted as two operations each; the best of twenty"
    a, b, best = torch.randn(n, n, device=device, dtype=dtype), torch.randn(n, n, device=device, dtype=dtype), float('inf')
    for _ in range(20):
        wait(device)
        start = time.perf_counter()
        for _ in range(5): a @ b
        wait(device)
        best = min(best, (time.perf_counter() - start)/5)
    return 2*n**3/best


def forward_flops(model, x):
    "Operations of one forward pass, as PyTorch counts them"
    with FlopCounterMode(display=False) as counter, torch.no_grad(): model.eval()(x)
    return counter.get_total_flops()


class Items(torch.utils.data.Dataset):
    "One image and its label at a time"
    def __init__(self, images, labels, ready=lambda x: x): self.images, self.labels, self.ready = images, labels, ready
    def __len__(self): return len(self.images)
    def __getitem__(self, i): return self.ready(self.images[i]), self.labels[i]


def by_hand(model, batches, device):
    "Autocast and a fused AdamW; one run is one pass"
    opt = torch.optim.AdamW(model.parameters(), LR, fused=True)
    def epoch():
        model.train()
        for xb, yb in batches():
            with torch.autocast(device.type, torch.bfloat16): loss = F.cross_entropy(model(xb), yb)
            loss.backward()
            opt.step()
            opt.zero_grad()
    return epoch


def by_timm(model, loader, device):
    "What timm's training script does in a step, from its parts: prefetching loader, optimizer factory, running mean of the loss"
    opt = create_optimizer_v2(model, opt='adamw', lr=LR, weight_decay=.01)
    def epoch():
        model.train()
        losses = AverageMeter()
        for i, (xb, yb) in enumerate(loader):
            with torch.autocast(device.type, torch.bfloat16): loss = F.cross_entropy(model(xb.contiguous(memory_format=torch.channels_last)), yb)
            opt.zero_grad()
            loss.backward()
            opt.step()
            if i % 50 == 0: losses.update(loss.item(), len(xb))   # it looks at the loss now and then
    return epoch


class TrainOnly(Callback):
    "A pass over the training data is compared, not the validation after it"
    def before_validate(self): raise CancelValidException


def by_learner(kind, dls, model, opt_func=None):
    "Recorder, metric and mixed precision on"
    learn = kind(dls, model, CrossEntropyLossFlat(), metrics=accuracy, cbs=[TrainOnly(), MixedPrecision(AMPMode.BF16)], **({} if opt_func is None else dict(opt_func=opt_func)))
    def epoch():
        with learn.no_bar(), learn.no_logging(): learn.fit(1, LR)
    return epoch


def network_entries(name, images, labels, bs, device):
    "{name: run} of one network"
    normalize, workers = NormalizeImages(MEAN, STD), min(8, os.cpu_count() or 1) if device.type == 'cuda' else 0
    def tfm(x): return normalize.apply(x).contiguous(memory_format=torch.channels_last)
    def net(): torch.manual_seed(0); return getattr(torchvision.models, name)(num_classes=1000).to(device, memory_format=torch.channels_last)
    def quicker(model): return torch.compile(model, backend='inductor' if device.type == 'cuda' else 'eager')
    def loaders(dl): return DataLoaders(dl, dl, device=device)
    there, here = (loaders(TensorDataLoader(images, labels, bs, True, True, device, tfm, keep_on_device=keep)) for keep in (True, False))
    bytes_, answers = images.to(device), labels.to(device)
    def batches():
        for ix in torch.randperm(len(bytes_), device=device).split(bs): yield tfm(bytes_[ix]), answers[ix]
    scaled = Items(images, labels, lambda x: (x.float()/255 - torch.tensor(MEAN).view(3, 1, 1))/torch.tensor(STD).view(3, 1, 1))
    stock = loaders(DataLoader(scaled, bs=bs, shuffle=True, drop_last=True, num_workers=workers, device=device))
    prefetched = PrefetchLoader(torch.utils.data.DataLoader(Items(images, labels), bs, True, num_workers=workers, collate_fn=fast_collate, pin_memory=device.type == 'cuda', drop_last=True), MEAN, STD, device=device)
    return {
        'by hand': by_hand(net(), batches, device), 'by hand, compiled': by_hand(quicker(net()), batches, device),
        'FastLearner': by_learner(FastLearner, there, net(), FusedAdamW), 'FastLearner, compiled': by_learner(FastLearner, there, quicker(net()), FusedAdamW),
        'FastLearner, from the host': by_learner(FastLearner, here, net(), FusedAdamW),
        'fastai, our loader': by_learner(Learner, there, net()), 'fastai as it comes': by_learner(Learner, stock, net()), "timm's parts": by_timm(net(), prefetched, device),
    }


def network_goals(name):
    return [(f'{name}: FastLearner, compiled, over by hand, compiled', 'FastLearner, compiled', 'by hand, compiled', .95), (f'{name}: FastLearner over by hand', 'FastLearner', 'by hand', None),
            (f'{name}: FastLearner over fastai, our loader', 'FastLearner', 'fastai, our loader', None), (f'{name}: FastLearner over fastai as it comes', 'FastLearner', 'fastai as it comes', None),
            (f"{name}: FastLearner over timm's parts", 'FastLearner', "timm's parts", None), (f'{name}: data on the GPU over data on the host', 'FastLearner', 'FastLearner, from the host', None),
            (f'{name}: compiled over not compiled', 'FastLearner, compiled', 'FastLearner', None)]


def small_entries(device, n):
    "{name: run} of a small network on 8×8 pixels, where the Python between the steps decides"
    gen = torch.Generator().manual_seed(0)
    images, labels = torch.randint(0, 256, (n, 1, 8, 8), dtype=torch.uint8, generator=gen), torch.randint(0, 10, (n,), generator=gen)
    def tfm(x): return x.float()/255
    def net(): torch.manual_seed(0); return small_cnn(10, width=16).to(device)
    ours, stock = (DataLoaders(dl, dl, device=device) for dl in (TensorDataLoader(images, labels, 64, True, True, device, tfm, keep_on_device=True),
                                                                 DataLoader(Items(images.float()/255, labels), bs=64, shuffle=True, drop_last=True, num_workers=0, device=device)))
    def learner(kind, dls, **kw):
        learn = kind(dls, net(), CrossEntropyLossFlat(), metrics=accuracy, cbs=TrainOnly(), **kw)
        def epoch():
            with learn.no_bar(), learn.no_logging(): learn.fit(1, LR)
        return epoch
    return {'small: FastLearner': learner(FastLearner, ours, opt_func=FusedAdamW), 'small: fastai, our loader': learner(Learner, ours), 'small: fastai as it comes': learner(Learner, stock)}


SMALL = [('small network: FastLearner over fastai as it comes', 'small: FastLearner', 'small: fastai as it comes', 2), ('small network: FastLearner over fastai, our loader', 'small: FastLearner', 'small: fastai, our loader', None)]


def ensemble_entries(device, n, epochs):
    "{name: run} of 20 networks (5 folds × 4 seeds), one after the other and all at once"
    X, y = torch.randn(n, 64, device=device), torch.randint(0, 10, (n,), device=device)
    def mlp(): return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    def cnn(): return nn.Sequential(nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(256, 10))
    return {f'20 {name}, {how}': partial(vmap_cross_validate, make, X, y, 5, 4, epochs, LR, method=how) for name, make in (('MLPs', mlp), ('CNNs', cnn)) for how in ('loop', 'vmap')}


ENSEMBLES = [('20 MLPs: vmap over the loop', '20 MLPs, vmap', '20 MLPs, loop', 8), ('20 CNNs: vmap over the loop', '20 CNNs, vmap', '20 CNNs, loop', None)]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--quick', action='store_true', help='tiny images and few of them; for a look, not for the record')
    parser.add_argument('--rounds', type=int, default=None, help='interleaved rounds (5, or 1 with --quick)')
    parser.add_argument('--device', default='cuda', help='cuda; or cpu, with --quick, to see that the script works')
    args = parser.parse_args()
    device, rounds = torch.device(args.device), args.rounds or (1 if args.quick else 5)
    if device.type == 'cuda' and not torch.cuda.is_available(): return print('No GPU that PyTorch can use: nothing is measured, results/gpu.json is left as it was.')
    if device.type != 'cuda' and not args.quick: parser.error(f'--device {args.device} is for a look alone; add --quick, or take a GPU.')
    size, n, bs = (32, 16, 8) if args.quick else (224, 2048, 256)
    rate = matmul_rate(device, torch.bfloat16, 512 if args.quick else 8192)
    card = torch.cuda.get_device_name() if device.type == 'cuda' else 'no GPU'
    print(f'{card}: {rate/1e12:.1f}e12 operations a second in bfloat16\n')
    gen = torch.Generator().manual_seed(0)
    images, labels = torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8, generator=gen), torch.randint(0, 1000, (n,), generator=gen)
    found, speed, use = {}, {}, {}
    for name in ('resnet18',) if args.quick else ('resnet18', 'resnet50'):
        seconds = race({k: finished(run, device) for k, run in network_entries(name, images, labels, bs, device).items()}, rounds)
        speed |= {f'{name}: {k}': v for k, v in speeds(seconds, f'{name}, images a second', lambda _, wall: n/wall, 0).items()}
        found |= ratios(seconds, network_goals(name))
        needed = 3*forward_flops(getattr(torchvision.models, name)().to(device), torch.randn(1, 3, size, size, device=device))
        use |= {f'{name}: {k}': n*needed/statistics.median(wall for wall, _ in v)/rate for k, v in seconds.items()}
    for entries, goals in (small_entries(device, 640 if args.quick else 20_000), SMALL), (ensemble_entries(device, 200 if args.quick else 2000, 1 if args.quick else 5), ENSEMBLES):
        seconds = race({k: finished(run, device) for k, run in entries.items()}, rounds)
        speeds(seconds, 'seconds', lambda _, wall: wall)
        found |= ratios(seconds, goals)
    print('\nmodel FLOP utilisation: ' + ', '.join(f'{k} {v:.1%}' for k, v in use.items()))
    save('gpu', args.quick, ('torch', 'torchvision', 'fastai', 'timm'), rounds=rounds, card=card, matmul=rate, images=n, side=size, batch=bs, images_a_second=speed, flop_utilisation=use, ratios=found)


if __name__ == '__main__': main()
