"""Images a second of our data loaders beside what a user would pick instead, and beside the limit.

python benchmarks/loaders.py [--quick] [--rounds N]

Every table is one interleaved race: the entries take turns, round after round, in one process with one torch thread.
Printed are medians of the ratios within a round, with their smallest and largest value, and the median in processor time,
which says how much work is saved where other programs take the processor away. It does not count what threads gain. Results go to results/loaders.json.
"""
import tempfile
import warnings
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

warnings.filterwarnings('ignore')

import numpy as np
import simplejpeg
import torch
from _racing import options, race, ratios, save, speeds
from fastai.data.core import TfmdDL
from PIL import Image
from sklearn.datasets import load_sample_images
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from course_lib.dataloading import JpegFolderLoader, NormalizeImages, TensorDataLoader

MEAN, STD = [.485, .456, .406], [.229, .224, .225]
CACHED_EPOCHS = 4 # one cached epoch is too short to time


class Items(Dataset):
    "One image at a time, as tutorials do it"
    def __init__(self, images, labels, tfm=None): self.images, self.labels, self.tfm = images, labels, tfm
    def __len__(self): return len(self.images)
    def __getitem__(self, i): return (self.images[i] if self.tfm is None else self.tfm(self.images[i])), self.labels[i]


def drain(loader, epochs=1):
    "One run is one epoch; so many of them are timed together"
    return lambda: deque(loader, maxlen=0), epochs


def write_photos(folder, n, seed=0):
    "n real JPEG files of 500×375: random views of scikit-learn's two photographs"
    rng = np.random.default_rng(seed)
    photos = load_sample_images().images
    for i in range(n):
        photo, w = photos[i % 2], int(rng.integers(350, 561))
        h = w*375//500
        x, y = rng.integers(0, 641 - w), rng.integers(0, 428 - h)
        path = folder/f'class{i % 2}'/f'{i:04d}.jpg'
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photo[y:y+h, x:x+w]).resize((500, 375)).save(path, quality=90)


def in_memory(n, rounds):
    "50k×3×32×32 uint8, bs 256, shuffled: bytes out, then normalised float32 out"
    gen = torch.Generator().manual_seed(0)
    images, labels = torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8, generator=gen), torch.randint(0, 10, (n,), generator=gen)
    buffer = torch.empty(256, 3, 32, 32, dtype=torch.uint8)
    def memcpy():
        for part in images.split(256): buffer[:len(part)].copy_(part)
    to_float = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])
    raw, floats, normalise = Items(images, labels), Items(images, labels, to_float), NormalizeImages(MEAN, STD)
    return race({
        'torch DataLoader, 0 workers': drain(DataLoader(raw, 256, shuffle=True)),
        'torch DataLoader, 2 workers': drain(DataLoader(raw, 256, shuffle=True, num_workers=2)),
        'fastai, 0 workers': drain(TfmdDL(raw, 256, shuffle=True, num_workers=0)),
        'fastai, its default (workers)': drain(TfmdDL(raw, 256, shuffle=True, num_workers=2)),
        'TensorDataLoader': drain(TensorDataLoader(images, labels, 256, shuffle=True), 5),
        'TensorDataLoader, reuse=True': drain(TensorDataLoader(images, labels, 256, shuffle=True, reuse=True), 5),
        'memcpy, in order': (memcpy, 5),
        'float32: torch DataLoader + v2, 0 workers': drain(DataLoader(floats, 256, shuffle=True)),
        'float32: TensorDataLoader': drain(TensorDataLoader(images, labels, 256, shuffle=True, batch_tfm=normalise), 3),
    }, rounds)


def jpeg_folder(n, rounds, folder):
    "JPEG files of 500×375 to random resized crops of 224 with flips"
    photos = Path(folder)/'photos'
    write_photos(photos, n)
    to_float = v2.Compose([v2.RandomResizedCrop(224), v2.RandomHorizontalFlip(), v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])
    peer = ImageFolder(photos, to_float)
    encoded = [Path(f).read_bytes() for f, _ in peer.samples]
    def decode():
        with ThreadPoolExecutor(2) as pool: deque(pool.map(simplejpeg.decode_jpeg, encoded), maxlen=0)
    return race({
        'jpeg float32: ImageFolder + v2, 0 workers': drain(DataLoader(peer, 64, shuffle=True)),
        'jpeg float32: ImageFolder + v2, 2 workers': drain(DataLoader(peer, 64, shuffle=True, num_workers=2)),
        'jpeg float32: JpegFolderLoader, 2 threads': drain(JpegFolderLoader(photos, batch_tfm=NormalizeImages(MEAN, STD))),
        'jpeg uint8: JpegFolderLoader, 2 threads': drain(JpegFolderLoader(photos)),
        'jpeg: decode only, 2 threads': decode,
        'jpeg uint8: JpegFolderLoader, cached epoch': drain(JpegFolderLoader(photos, cache=Path(folder)/'cache'), CACHED_EPOCHS),
    }, rounds)


# (what, ours, beside, goal: ours must be at least so many times as fast)
GOALS = [
    ('bytes, over torch', 'TensorDataLoader', 'torch DataLoader, 0 workers', 9),
    ('bytes, over torch, reuse=True', 'TensorDataLoader, reuse=True', 'torch DataLoader, 0 workers', 9),
    ("bytes, over fastai's default", 'TensorDataLoader', 'fastai, its default (workers)', 20),
    ('bytes, share of memcpy', 'TensorDataLoader', 'memcpy, in order', .65),
    ('bytes, share of memcpy, reuse=True', 'TensorDataLoader, reuse=True', 'memcpy, in order', .65),
    ('normalised float32, over torch + v2', 'float32: TensorDataLoader', 'float32: torch DataLoader + v2, 0 workers', 15),
    ('JPEG to float32, over ImageFolder', 'jpeg float32: JpegFolderLoader, 2 threads', 'jpeg float32: ImageFolder + v2, 0 workers', 3),
    ('JPEG to float32, over ImageFolder, 2 workers', 'jpeg float32: JpegFolderLoader, 2 threads', 'jpeg float32: ImageFolder + v2, 2 workers', 1.8),
    ('JPEG to uint8, share of decode only', 'jpeg uint8: JpegFolderLoader, 2 threads', 'jpeg: decode only, 2 threads', .70),
    ('JPEG cached epoch, over ImageFolder, 2 workers', 'jpeg uint8: JpegFolderLoader, cached epoch', 'jpeg float32: ImageFolder + v2, 2 workers', 15),
]


def main():
    rounds, quick = options(__doc__, 7, 3, 'images')
    n_memory, n_jpeg = (10_000, 128) if quick else (50_000, 320)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    seconds = in_memory(n_memory, rounds)
    with tempfile.TemporaryDirectory() as folder: seconds |= jpeg_folder(n_jpeg, rounds, folder)
    save('loaders', quick, ('torch', 'torchvision', 'fastai', 'pillow', 'simplejpeg', 'numpy'), rounds=rounds, images=dict(memory=n_memory, jpeg=n_jpeg),
         images_per_second=speeds(seconds, 'images/s', lambda name, wall: (n_jpeg if 'jpeg' in name else n_memory)/wall, 0), ratios=ratios(seconds, GOALS))


if __name__ == '__main__': main()
