"""Test-time augmentation with `tta_predict` beside fastai's `learn.tta`: the same files, network and views.

python benchmarks/tta.py [--quick] [--rounds N]

Two networks on JPEG photographs: a tiny one, where decoding takes most of the time, and timm's resnet18, where the network does.
`learn.tta` reads and decodes the files once for each view; `tta_predict` once, all views of a batch in one forward pass.
All predict the mean of the picture and the same 4 views; that the answers agree is asserted before anything is timed.
The last row's loader cuts the middle of each photo instead of squeezing all of it: the same work, other pixels.
The entries take turns, round after round, in one process with one thread and no worker. Printed are medians of the ratios
within a round, with their smallest and largest value, and the median in processor time, which other programs disturb less.
Results go to results/tta.json.
"""
import tempfile
import warnings
from pathlib import Path

warnings.filterwarnings('ignore')

import numpy as np
import timm
import torch
import torch.nn.functional as F
from _racing import options, race, ratios, save, speeds
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import nn

from course_lib.dataloading import JpegFolderLoader, NormalizeImages
from course_lib.ensembles import tta_predict
from fastai.callback.progress import ProgressCallback
from fastai.data.block import CategoryBlock, DataBlock
from fastai.data.transforms import GrandparentSplitter, Normalize, get_image_files, parent_label
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from fastai.torch_core import TensorImage
from fastai.vision.augment import Resize
from fastai.vision.data import ImageBlock
from fasttransform import Transform

MEAN, STD, SIZE, BS = [.485, .456, .406], [.229, .224, .225], 224, 32


def zoom(x): return F.interpolate(x[..., 12:-12, 12:-12], x.shape[-2:], mode='bilinear', align_corners=False)
VIEWS = [lambda x: x.flip(-1), zoom, lambda x: zoom(x).flip(-1), lambda x: x.roll(8, -1)] # as plain functions of a batch, for both sides


class ViewOfPass(Transform):
    "`learn.tta` counts its passes in `learn.epoch`; each pass shows another view, the last one the picture as it is"
    order = 98 # before Normalize
    def __init__(self): super().__init__(); self.learn = None
    def encodes(self, x: TensorImage):
        k = self.learn.epoch if self.learn is not None else 4
        return VIEWS[k](x) if k < 4 else x


def write_photos(folder, n, seed=0):
    "n real JPEG files of 500×375 to validate on (and two to train on): random views of scikit-learn's two photographs"
    rng = np.random.default_rng(seed)
    photos = load_sample_images().images
    for i in range(n + 2):
        photo, w = photos[i % 2], int(rng.integers(350, 561))
        h = w*375//500
        x, y = rng.integers(0, 641 - w), rng.integers(0, 428 - h)
        path = folder/('train' if i >= n else 'valid')/f'class{i % 2}'/f'{i:04d}.jpg'
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photo[y:y+h, x:x+w]).resize((500, 375)).save(path, quality=90)


def tiny(): return nn.Sequential(nn.Conv2d(3, 8, 7, 4, 3), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 2))


def entries_of(net, photos):
    "fastai's TTA; ours on fastai's own loader; ours on our loader"
    view = ViewOfPass()
    block = DataBlock((ImageBlock, CategoryBlock), get_items=get_image_files, get_y=parent_label, splitter=GrandparentSplitter(),
                      item_tfms=Resize(SIZE, method='squish'), batch_tfms=[view, Normalize.from_stats(MEAN, STD, cuda=False)])
    dls = block.dataloaders(photos, bs=BS, num_workers=0, device=torch.device('cpu'))
    learn = Learner(dls, net, loss_func=CrossEntropyLossFlat())
    learn.remove_cb(ProgressCallback)
    ours = JpegFolderLoader(photos/'valid', SIZE, BS, train=False, workers=0)
    def stock():
        view.learn = learn
        try:
            with learn.no_logging(): return learn.tta(n=4, beta=1/5)[0] # lerp: 4/5 of the views' mean, 1/5 of the plain one
        finally: view.learn = None
    return {'fastai learn.tta': stock,
            "tta_predict on fastai's loader": lambda: tta_predict(net, dls.valid, [None, *VIEWS]),
            'tta_predict on JpegFolderLoader': lambda: tta_predict(net, ours, [lambda x: x.float()/255, *FLOAT_VIEWS], prepare=normalise)}


normalise = NormalizeImages(MEAN, STD).apply
FLOAT_VIEWS = [lambda x, v=v: v(x.float()/255) for v in VIEWS]


# (what, ours, beside, goal: ours must be at least so many times as fast)
GOALS = [(f'{regime}, {loader} loader', f'{regime}: tta_predict on {whose}', f'{regime}: fastai learn.tta', goal)
         for regime, goal in (('decoding dominates', 2.5), ('network dominates', 1.1))
         for loader, whose in (('same', "fastai's loader"), ('our', 'JpegFolderLoader'))]


def main():
    rounds, quick = options(__doc__, 7, 2, 'images')
    counts = {'decoding dominates': 32 if quick else 96, 'network dominates': 8 if quick else 24}
    torch.set_num_threads(1)
    torch.manual_seed(0)
    seconds, gaps = {}, {}
    for regime, net in (('decoding dominates', tiny()), ('network dominates', timm.create_model('resnet18', num_classes=2))):
        with tempfile.TemporaryDirectory() as folder:
            write_photos(Path(folder), counts[regime])
            entries = entries_of(net.eval(), Path(folder))
            stock, ours = (entries[name]() for name in ('fastai learn.tta', "tta_predict on fastai's loader"))
            gaps[regime] = float((stock - ours).abs().max())
            assert gaps[regime] < 1e-4, f'{regime}: the two differ by {gaps[regime]}'
            seconds |= {f'{regime}: {name}': s for name, s in race(entries, rounds).items()}
    save('tta', quick, ('torch', 'torchvision', 'fastai', 'timm', 'pillow', 'simplejpeg', 'numpy'), rounds=rounds, images=counts, views=5, largest_difference=gaps,
         images_per_second=speeds(seconds, 'images/s', lambda name, wall: counts[name.split(':')[0]]/wall, 1), ratios=ratios(seconds, GOALS))


if __name__ == '__main__': main()
