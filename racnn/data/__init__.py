"""From a configuration to batches.

A sample is a function of (seed, epoch, position) alone: the batch sampler hands every worker the epoch together with
the position, and each sample draws its random changes from a seed made of the three. So the pixels do not depend on
the number of workers, and a run that is taken up again in the middle of an epoch sees what it would have seen.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from racnn.config import DataConfig
from racnn.data.cache import PhotoCache, open_cache
from racnn.data.cars import cars
from racnn.data.catalog import (
    Catalog,
    Record,
    hold_out,
    read_exclusions,
    read_record,
    refuse_other_classes,
    without,
)
from racnn.data.cub import cub200
from racnn.data.dogs import dogs
from racnn.data.drawn import synthetic_catalog
from racnn.data.folders import folder
from racnn.data.manifest import manifest
from racnn.data.photos import read_photo, read_reduced
from racnn.data.survey import find_damaged
from racnn.data.transforms import SourceTransform
from racnn.errors import ConfigError, DataError, did_you_mean

__all__ = [
    "DATASETS",
    "Data",
    "PhotoDataset",
    "build_data",
    "eval_loader",
    "mix_seed",
    "read_photo",
    "start_worker",
    "train_loader",
]

DATASETS: dict[str, Callable[[DataConfig], Catalog]] = {
    "cub200": cub200,
    "dogs": dogs,
    "cars": cars,
    "folder": folder,
    "manifest": manifest,
    "synthetic": synthetic_catalog,
}


class Key(NamedTuple):
    """What a sample depends on besides the data set's seed.

    Attributes:
        epoch: From 0.
        position: Of the photo in its split.
        repeat: How often the photo was drawn before in this epoch.
        share: Of the batch's loss; the shares of a batch add up to 1, over all processes that train together.
    """

    epoch: int
    position: int
    repeat: int = 0
    share: float = 1.0


class PhotoDataset(Dataset[dict[str, torch.Tensor]]):
    """One split: photos as square sources, with their annotations in the source's frame.

    Args:
        catalog: Knows how to load a record.
        records: The photos of the split.
        config: Size and shape of the source, and the random changes.
        seed: Of the random changes.
        augment: Whether there are any.

    Attributes:
        lessons: None, or a box a photo, [N, 4] xyxy in the frame of the source without random changes, for a network
            to learn. They follow the random changes. Half of the samples then show the whole photo: after a random crop
            everything is larger than it will be in use, and a network that is not yet sure of a size proposes the mean.
        num_noise: How many random numbers a sample brings along for the training step.
    """

    def __init__(
        self,
        catalog: Catalog,
        records: Sequence[Record],
        config: DataConfig,
        *,
        seed: int = 0,
        augment: bool = False,
    ) -> None:
        self.catalog = catalog
        self.records = list(records)
        self.config = config
        self.seed = seed
        self.cache: PhotoCache | None = None
        self.lessons: np.ndarray | None = None
        self.num_noise = 0
        whole = config.augment.model_copy(update={"crop": 1.0})
        self.plain_transform = SourceTransform(config.source_size, config.resize)
        self.whole_transform = SourceTransform(config.source_size, config.resize, whole if augment else None)
        self.transform = SourceTransform(
            config.source_size, config.resize, config.augment if augment else None
        )

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: tuple[Any, ...]) -> dict[str, torch.Tensor]:
        """Return the sample of a :class:`Key`, or of its first numbers.

        Returns:
            ``image`` uint8 [3, S, S]; ``label`` and ``index`` int64 []; ``share`` float64 []; ``box`` float32 [4], xyxy in the
            source's frame, NaN where unknown; ``parts`` float32 [P, 3], (x, y, visible) in the source's frame; with
            ``lessons`` also ``lesson`` float32 [4], likewise. A box or part that a crop cuts off lies beyond [-1, 1].
            With ``num_noise`` also ``noise`` float32 [num_noise], even in [0, 1).

        Raises:
            DataError: The photo cannot be read.
        """
        epoch, index, repeat, share = Key(*key)
        record = self.records[index]
        resized, size = self._resized(index) if self.cache is None else self.cache[index]
        transform = self.transform
        box_xyxy, parts = self.catalog.annotate(record)
        seed = mix_seed(self.seed, epoch, index, *([repeat] if repeat else []))
        points = np.asarray(parts, np.float64).reshape(-1, 3)
        if self.lessons is not None:
            points = np.concatenate([points, self._lesson_corners(index, size)])
            if seed % 2:
                transform = self.whole_transform
                resized = transform.shrink(resized, size)
        image, box, located = transform.finish(resized, size, box_xyxy, points, seed)
        sample = {
            "image": torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))),
            "label": torch.tensor(record.label),
            "index": torch.tensor(index),
            "share": torch.tensor(share, dtype=torch.float64),
            "box": torch.from_numpy(box),
            "parts": torch.from_numpy(located),
        }
        if self.lessons is not None:
            corners = located[-2:, :2]  # a flip swaps left and right
            sample["lesson"] = torch.from_numpy(np.concatenate([corners.min(0), corners.max(0)]))
            sample["parts"] = torch.from_numpy(located[:-2])
        if self.num_noise:
            noise = np.random.default_rng((seed, 1)).random(self.num_noise, dtype=np.float32)
            sample["noise"] = torch.from_numpy(noise)
        return sample

    def _lesson_corners(self, index: int, size: tuple[int, int]) -> np.ndarray:
        """Return the two corners of a photo's lesson as points (x, y, 1) in the pixels of the photo."""
        assert self.lessons is not None
        in_source = (self.lessons[index].astype(np.float64) + 1.0) / 2.0 * self.config.source_size
        x0, y0, x1, y1 = self.plain_transform.to_photo(in_source.tolist(), size)
        return np.array([(x0, y0, 1.0), (x1, y1, 1.0)])

    def _resized(self, index: int) -> tuple[np.ndarray, tuple[int, int]]:
        """Return a photo resized to what the square is cut from, and its own (height, width)."""
        record = self.records[index]
        if record.path is None or self.catalog.load is not read_record:
            photo = self.catalog.load(record)
            size = (photo.shape[0], photo.shape[1])
        else:
            try:
                photo, size = read_reduced(record.path, self.transform.resized_shape)
            except DataError as error:
                raise DataError(
                    f"{error}; `racnn data verify` lists all such photos: leave them out with data.exclude or "
                    "data.on_error=skip (evaluate: --skip-damaged)"
                ) from None
        return self.transform.shrink(photo, size), size

    def use_cache(self, say: Callable[[str], None]) -> None:
        """Read photos from ``config.cache`` from now on; write it first where it is not there yet.

        Raises:
            ConfigError: The photos are drawn, not read.
            DataError: A photo cannot be read, or the disk has not enough room.
        """
        paths = [record.path for record in self.records if record.path is not None]
        assert self.config.cache is not None
        if len(paths) < len(self.records) or self.catalog.load is not read_record:
            raise ConfigError(
                f"data.cache: the photos of '{self.catalog.dataset}' are drawn and need no cache"
            )
        workers = self.config.num_workers
        self.cache = open_cache(self.config.cache, paths, self.transform, workers=workers, say=say)

    def without_augmentation(self) -> PhotoDataset:
        """Return the same photos without random changes."""
        plain = PhotoDataset(self.catalog, self.records, self.config, seed=self.seed)
        if plain.transform.resize_to == self.transform.resize_to:
            plain.cache = self.cache
        plain.lessons = self.lessons
        return plain


@dataclass(frozen=True)
class Data:
    """A data set that is ready to use; ``val_names`` are the photos kept for validation."""

    dataset: str
    class_names: list[str]
    part_names: list[str]
    focus_parts: tuple[int, ...]
    splits: dict[str, PhotoDataset]  # train, val, test, and held_out where training photos are held out
    val_names: list[str]
    skipped: dict[str, str] = field(default_factory=dict)  # damaged photos left out, with the reason

    def class_counts(self) -> list[int]:
        """Return how many photos each class has for training."""
        labels = [record.label for record in self.splits["train"].records]
        return np.bincount(labels, minlength=len(self.class_names)).tolist()

    def training_names(self) -> list[str]:
        """Return the names of all photos that some phase is trained on."""
        taught = [self.splits[split] for split in ("train", "held_out") if split in self.splits]
        return [record.name for dataset in taught for record in dataset.records]


def build_data(
    config: DataConfig,
    *,
    seed: int,
    val_names: Sequence[str] | None = None,
    class_names: Sequence[str] | None = None,
) -> Data:
    """Read a data set's annotations and split it; no photo is opened.

    Args:
        config: Which data set, and how it is split.
        seed: Of the random changes of the training photos, not of the split.
        val_names: The validation photos by name, as a checkpoint recorded them, instead of drawing them anew.
        class_names: The classes that a checkpoint knows; others are refused.

    Raises:
        ConfigError: There is no data set of this name.
        DataError: The data set is missing, damaged, or too small to be split, or does not hold ``val_names``, or
            has other classes than ``class_names``.
    """
    if config.dataset not in DATASETS:
        raise ConfigError(
            f"data.dataset: no data set is called '{config.dataset}'{did_you_mean(config.dataset, DATASETS)}; "
            f"expected {', '.join(DATASETS)}"
        )
    catalog = DATASETS[config.dataset](config)
    if class_names is not None:
        refuse_other_classes(catalog.class_names, class_names)
    if config.exclude is not None:
        catalog = without(catalog, read_exclusions(config.exclude.expanduser()))
    skipped: dict[str, str] = {}
    if config.on_error == "skip":
        skipped = find_damaged(catalog, config)
        catalog = without(catalog, skipped)
    if val_names is not None:
        val_names = [name for name in val_names if name not in skipped]
    train, val = _split(catalog, config, val_names)
    taught = {"train": train}
    if config.held_out_fraction:
        kept, held_out = hold_out(
            train, fraction=config.held_out_fraction, seed=config.split_seed, purpose="held_out"
        )
        if not held_out:
            raise DataError(
                "data.held_out_fraction: no class has two training photos, so none can be held out"
            )
        taught = {"train": kept, "held_out": held_out}
    _check_splits(catalog, taught["train"], val)
    _refuse_doubles([*train, *val, *catalog.test])
    return Data(
        dataset=catalog.dataset,
        class_names=catalog.class_names,
        part_names=catalog.part_names,
        focus_parts=catalog.focus_parts,
        splits={
            **{
                split: PhotoDataset(catalog, records, config, seed=seed, augment=True)
                for split, records in taught.items()
            },
            "val": PhotoDataset(catalog, val, config),
            "test": PhotoDataset(catalog, catalog.test, config),
        },
        val_names=[record.name for record in val],
        skipped=skipped,
    )


def train_loader(
    data: Data,
    config: DataConfig,
    *,
    seed: int,
    epoch: int,
    start_batch: int = 0,
    photos: str = "train",
    num_noise: int = 0,
    rank: int = 0,
    num_ranks: int = 1,
) -> DataLoader:
    """Return the batches of one epoch of 'train' or 'held_out' photos, shuffled by (seed, epoch), from a batch on.

    The batches before are not loaded. The last one may be smaller. The loader's length counts what is left. With
    ``balance: sampling`` as many photos are drawn, with replacement, every class as often as every other. Every sample
    brings ``num_noise`` random numbers along.

    Of several processes that train together each gets its share of every batch; one that gets none, of a small last batch,
    gets the batch's first photo with a share of 0, for all must take the step.
    """
    dataset = data.splits[photos]
    dataset.num_noise = num_noise
    generator = torch.Generator().manual_seed(mix_seed(seed, epoch))
    if config.balance == "sampling":
        labels = torch.tensor([record.label for record in dataset.records])
        shares = 1.0 / labels.bincount()[labels]
        order = torch.multinomial(shares, len(dataset), replacement=True, generator=generator).tolist()
    else:
        order = torch.randperm(len(dataset), generator=generator).tolist()
    batches = _batches(order, epoch, config.batch_size)[start_batch:]
    own = [batch[rank::num_ranks] or [batch[0]._replace(share=0.0)] for batch in batches]
    return _loader(dataset, own, config)


def eval_loader(
    dataset: PhotoDataset, config: DataConfig, *, rank: int = 0, num_ranks: int = 1
) -> DataLoader:
    """Return a split's batches in order and without random changes, also those of the training photos.

    Of several processes each gets every so many-th batch.
    """
    batches = _batches(range(len(dataset)), 0, config.eval_batch_size)
    return _loader(dataset.without_augmentation(), batches[rank::num_ranks], config)


def _split(
    catalog: Catalog, config: DataConfig, val_names: Sequence[str] | None
) -> tuple[list[Record], list[Record]]:
    """Return the training and the validation photos."""
    if val_names is None:
        if catalog.val is not None:
            return catalog.train, catalog.val
        return hold_out(catalog.train, fraction=config.val_fraction, seed=config.split_seed, purpose="val")
    pool = catalog.train + (catalog.val or [])
    wanted = set(val_names)
    missing = wanted.difference(record.name for record in pool)
    if missing:
        raise DataError(
            f"data.root: {len(missing)} of the {len(wanted)} validation photos of the checkpoint are not in this "
            f"{catalog.dataset} data set, for example '{min(missing)}'; expected the data it was trained on"
        )
    return [r for r in pool if r.name not in wanted], [r for r in pool if r.name in wanted]


def _check_splits(catalog: Catalog, train: Sequence[Record], val: Sequence[Record]) -> None:
    """Refuse a data set from which nothing could be learnt or measured."""
    if len(catalog.class_names) < 2:
        raise DataError(f"data.classes: expected at least two classes, got {catalog.class_names}")
    for split, records in (("training", train), ("validation", val), ("test", catalog.test)):
        if not records:
            raise DataError(
                f"data: the {catalog.dataset} data set has no {split} photos: a class needs three photos, for training, "
                "validation and test, where the data set brings no split of its own"
            )
    taught = {record.label for record in train}
    for label, name in enumerate(catalog.class_names):
        if label not in taught:
            raise DataError(f"data: class '{name}' has no training photos")


def _refuse_doubles(records: Sequence[Record]) -> None:
    """Refuse a photo that stands twice: in two splits, its test would be no test."""
    counts = Counter(os.path.normpath(record.path or record.name) for record in records)
    doubles = [name for name, count in counts.items() if count > 1]
    if doubles:
        raise DataError(
            f"data.root: {len(doubles)} photos are listed more than once, for example {doubles[0]}"
        )


def _batches(order: Sequence[int], epoch: int, size: int) -> list[list[Key]]:
    """Return the keys of an epoch in batches; a photo that comes again counts, so that it is changed anew."""
    seen: Counter[int] = Counter()
    batches: list[list[Key]] = []
    for start in range(0, len(order), size):
        chosen = order[start : start + size]
        batches.append([])
        for index in chosen:
            batches[-1].append(Key(epoch, index, seen[index], 1.0 / len(chosen)))
            seen[index] += 1
    return batches


def _loader(dataset: PhotoDataset, batches: list[list[Key]], config: DataConfig) -> DataLoader:
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=config.num_workers,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=start_worker,
        generator=torch.Generator(),  # or starting the workers would draw from the global generator
    )


def start_worker(_: int) -> None:
    """Keep each worker to one thread, and leave signals to the main process, which saves before it stops."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    cv2.setNumThreads(0)
    torch.set_num_threads(1)


@atexit.register
def _end_workers() -> None:
    """Kill workers that an error left behind: they ignore the signal by which multiprocessing ends them at exit."""
    for process in multiprocessing.active_children():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # or torch's handler would report the kill
        process.kill()


def mix_seed(*numbers: int) -> int:
    """Hash numbers of at least 0 to a seed of 64 bits."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])
