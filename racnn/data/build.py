"""From a configuration to a data set that is read, checked and split."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from racnn.data.dataset import PhotoDataset
from racnn.data.sources.cars import cars
from racnn.data.sources.catalog import (
    Catalog,
    Record,
    hold_out,
    in_classes_of,
    in_some_classes_of,
    only_classes,
    read_exclusions,
    without,
)
from racnn.data.sources.cub import cub200
from racnn.data.sources.digits import digits
from racnn.data.sources.dogs import dogs
from racnn.data.sources.folder import folder, folder_to_measure
from racnn.data.sources.manifest import manifest, manifest_to_measure
from racnn.data.sources.scene import in_scenes
from racnn.data.sources.synthetic import synthetic_catalog
from racnn.data.statistics import find_damaged
from racnn.errors import ConfigError, DataError, did_you_mean
from racnn.sections import DataConfig

DATASETS: dict[str, Callable[[DataConfig], Catalog]] = {
    "cub200": cub200,
    "dogs": dogs,
    "cars": cars,
    "folder": folder,
    "manifest": manifest,
    "synthetic": synthetic_catalog,
    "digits": digits,
}
# How photos to measure on are read where that differs: whole, with nothing held out.
TO_MEASURE: dict[str, Callable[[DataConfig], Catalog]] = {
    "folder": folder_to_measure,
    "manifest": manifest_to_measure,
}


@dataclass(frozen=True)
class Data:
    """A data set that is ready to use; ``val_names`` are the photos kept for validation."""

    dataset: str
    class_names: list[str]
    part_names: list[str]
    focus_parts: tuple[int, ...]
    splits: dict[str, PhotoDataset]  # train, val, test, and held_out where training photos are held out
    val_names: list[str]
    skipped: dict[str, str]  # damaged photos left out, with the reason
    passed_over: Counter[str]  # files that are no photos, by kind

    def class_counts(self) -> list[int]:
        """Return how many photos each class has for training."""
        labels = [record.label for record in self.splits["train"].records]
        return np.bincount(labels, minlength=len(self.class_names)).tolist()

    def use_cache(self, say: Callable[[str], None]) -> None:
        """Read decoded photos, but for the test photos, from the cache, if there is to be one; write it first where it is not."""
        for name, photos in sorted(self.splits.items()):
            if photos.config.cache is not None and name != "test":
                photos.use_cache(say)

    def class_weights(self) -> Tensor:
        """Return weights [C] by which every class counts the same: ``N / (C n_c)``, whose mean over photos is 1."""
        counts = torch.tensor(self.class_counts(), dtype=torch.float32)
        return counts.sum() / (len(counts) * counts)

    def training_names(self) -> list[str]:
        """Return the names of all photos that some phase is trained on."""
        taught = (self.splits[split].records for split in ("train", "held_out") if split in self.splits)
        return [record.name for records in taught for record in records]


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
        seed: Seed of the random changes of the training photos, not of the split.
        val_names: The validation photos by name, as a checkpoint recorded them, instead of drawing them anew.
        class_names: The classes that a checkpoint knows; others are refused.

    Raises:
        ConfigError: There is no data set of this name.
        DataError: The data set is missing, damaged, or too small to be split, or does not hold ``val_names``, or
            has other classes than ``class_names``.
    """
    catalog, skipped = _read_catalog(config, class_names)
    if config.scene_size:
        catalog = in_scenes(catalog, config.scene_size)
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
    splits = {
        split: PhotoDataset(catalog, records, config, seed=seed, augment=True)
        for split, records in taught.items()
    }
    splits |= {"val": PhotoDataset(catalog, val, config), "test": PhotoDataset(catalog, catalog.test, config)}
    return _data(catalog, splits, skipped, [record.name for record in val])


def _data(
    catalog: Catalog, splits: dict[str, PhotoDataset], skipped: dict[str, str], val_names: list[str]
) -> Data:
    return Data(
        dataset=catalog.dataset,
        class_names=catalog.class_names,
        part_names=catalog.part_names,
        focus_parts=catalog.focus_parts,
        splits=splits,
        val_names=val_names,
        skipped=skipped,
        passed_over=catalog.passed_over,
    )


def _read_catalog(config: DataConfig, class_names: Sequence[str] | None) -> tuple[Catalog, dict[str, str]]:
    """Return what the data set holds but for excluded and damaged photos, and why each of the latter cannot be read."""
    if config.dataset not in DATASETS:
        raise ConfigError(
            f"data.dataset: no data set is called '{config.dataset}'{did_you_mean(config.dataset, DATASETS)}; "
            f"expected {', '.join(DATASETS)}"
        )
    catalog = DATASETS[config.dataset](config)
    if class_names is not None:
        catalog = _with_classes(catalog, config, class_names)
    if config.exclude is not None:
        catalog = without(catalog, read_exclusions(config.exclude.expanduser()))
    return _without_damaged(catalog, config)


def _without_damaged(catalog: Catalog, config: DataConfig) -> tuple[Catalog, dict[str, str]]:
    """Return the data set without its damaged photos, where these are to be skipped, and why each cannot be read."""
    skipped = find_damaged(catalog, config) if config.on_error == "skip" else {}
    return (without(catalog, skipped) if skipped else catalog), skipped


def _with_classes(catalog: Catalog, config: DataConfig, class_names: Sequence[str]) -> Catalog:
    """Return a data set with the classes of a checkpoint, whose numbers may have been those of another order."""
    try:
        return in_classes_of(catalog, class_names)
    except DataError:
        if config.classes is None or config.dataset not in TO_MEASURE:
            raise
        every = DATASETS[config.dataset](config.model_copy(update={"classes": None}))
        return in_classes_of(only_classes(every, class_names), class_names)


def build_to_measure(config: DataConfig, root: Path, *, class_names: Sequence[str]) -> Data:
    """Read labelled photos that a network is to be measured on: any folder or list with some of its classes.

    Args:
        config: How photos become sources; what it says of a data set does not count, nor of scenes: photos are measured as
            they are.
        root: A list of photos, a folder in the layout of an official data set, or one of class folders, with splits or
            without.
        class_names: The classes that the network knows.

    Returns:
        Data whose splits are those that the photos bring, and ``all`` of them together.

    Raises:
        DataError: There is no such place, a photo's class is unknown, or there are no photos.
    """
    root = root.expanduser()
    if not root.exists():
        raise DataError(f"--data: {root}: no such folder or list of photos")
    kind = _kind_of(root)
    config = config.model_copy(update={"dataset": kind, "root": root, "classes": None, "exclude": None})
    catalog = in_some_classes_of(TO_MEASURE.get(kind, DATASETS[kind])(config), class_names)
    catalog, skipped = _without_damaged(catalog, config)
    every = catalog.records()
    if not every:
        raise DataError(f"--data: {root}: no photos to measure on")
    _refuse_doubles(every)
    splits = catalog.splits() | {"all": every}
    datasets = {split: PhotoDataset(catalog, records, config) for split, records in splits.items()}
    return _data(catalog, datasets, skipped, [])


def _kind_of(root: Path) -> str:
    """Return which data set reads what lies at a path, by the files that only it has."""
    if root.is_file():
        return "manifest"
    marks = {
        "cub200": ("image_class_labels.txt", "CUB_200_2011/image_class_labels.txt"),
        "dogs": ("train_list.mat", "lists/train_list.mat"),
        "cars": ("cars_annos.mat", "devkit/cars_train_annos.mat"),
    }
    found = (kind for kind, names in marks.items() if any((root / name).is_file() for name in names))
    return next(found, "folder")


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
    if missing := wanted.difference(record.name for record in pool):
        raise DataError(
            f"data.root: {len(missing)} of the {len(wanted)} validation photos of the checkpoint are not in this "
            f"{catalog.dataset} data set, for example '{min(missing)}'; expected the data it was trained on (where a data set "
            "brings no split, another photo changes how all are split: move away what was added, or what an earlier version "
            "passed over)"
        )
    return [r for r in pool if r.name not in wanted], [r for r in pool if r.name in wanted]


def _check_splits(catalog: Catalog, train: Sequence[Record], val: Sequence[Record]) -> None:
    """Refuse a data set from which nothing could be learnt or measured."""
    if len(catalog.class_names) < 2:
        raise DataError(f"data: expected at least two classes, got {catalog.class_names}")
    for split, records in (("training", train), ("validation", val), ("test", catalog.test)):
        if not records:
            raise DataError(
                f"data: the {catalog.dataset} data set has no {split} photos: a class needs three photos, for training, "
                "validation and test, where the data set brings no split of its own"
            )
    if missing := set(range(len(catalog.class_names))) - {record.label for record in train}:
        raise DataError(f"data: class '{catalog.class_names[min(missing)]}' has no training photos")


def _refuse_doubles(records: Sequence[Record]) -> None:
    """Refuse a photo that stands twice: in two splits, its test would be no test."""
    counts = Counter(os.path.normpath(record.path or record.name) for record in records)
    if doubles := [name for name, count in counts.items() if count > 1]:
        raise DataError(
            f"data.root: {len(doubles)} photos are listed more than once, for example {doubles[0]}"
        )
