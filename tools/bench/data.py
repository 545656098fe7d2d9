"""From a JPEG to a normalised tensor with all random changes, on one core, against torchvision."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image

from bench.figures import Figure, take_turns, times_as_fast
from racnn.compat import import_torchvision
from racnn.data import PhotoDataset
from racnn.data.listing import find_photos
from racnn.data.sources.catalog import Catalog, Record
from racnn.models.backbone import IMAGENET_MEAN, IMAGENET_STD
from racnn.sections import DataConfig


def measure(*, photos: int, root: Path | None, rounds: int) -> list[Figure]:
    """Return the figures of ``tools/benchmark.py data``."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    baseline = "torchvision.transforms.v2 on PIL"
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "photos"
        paths = write_photos(place, photos) if root is None else find_photos([root])[:photos]
        config = DataConfig(dataset="folder", num_workers=0, cache=Path(folder) / "cache")
        calls = {
            baseline: torchvision_reader(paths, config),
            "data, from files": sample_reader(paths, config, cached=False),
            "data, from the cache": sample_reader(paths, config, cached=True),
        }
        times = take_turns(calls, rounds)
    return [
        times_as_fast("data, from files", baseline, times, 2.0),
        times_as_fast("data, from the cache", baseline, times, 4.0),
    ]


def write_photos(place: Path, number: int) -> list[Path]:
    """Write JPEGs of 500 x 375 pixels, about as hard to decode as photos."""
    place.mkdir()
    paths = []
    for index in range(number):
        rng = np.random.default_rng(index)
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        smooth = np.array(coarse.resize((500, 375), Image.Resampling.BICUBIC), dtype=float)
        noisy = np.clip(smooth + rng.normal(0, 12, smooth.shape), 0, 255).astype(np.uint8)
        paths.append(place / f"{index}.jpg")
        Image.fromarray(noisy).save(paths[-1], quality=85)
    return paths


def sample_reader(paths: list[Path], config: DataConfig, *, cached: bool) -> Callable[[], None]:
    """Return a call that takes every photo through the dataset of this package."""
    records = [Record(str(path), 0, path) for path in paths]
    catalog = Catalog("folder", ["a", "b"], records, None, records, [], ())
    dataset = PhotoDataset(catalog, records, config, augment=True)
    if cached:
        dataset.use_cache(lambda _: None)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    epochs = itertools.count()

    def read() -> None:
        epoch = next(epochs)
        for index in range(len(paths)):
            dataset[epoch, index]["image"].float().div_(255.0).sub_(mean).div_(std)

    return read


def torchvision_reader(paths: list[Path], config: DataConfig) -> Callable[[], None]:
    """Return a call that takes every photo through a plain torchvision pipeline with the same random changes."""
    import_torchvision()
    from torchvision.transforms import v2

    size, augment = config.source_size, config.augment
    before = round(size / augment.crop)
    changes = v2.Compose(
        [
            v2.Resize((before, before), antialias=True),
            v2.RandomCrop(size),
            v2.RandomHorizontalFlip(),
            v2.ColorJitter(augment.color, augment.color, augment.color),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )

    def read() -> None:
        for path in paths:
            with Image.open(path) as photo:
                _ = changes(photo.convert("RGB"))

    return read
