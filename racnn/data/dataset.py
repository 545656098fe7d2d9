"""One photo as a sample: a square source with its annotations, changed at random as its key says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

from racnn.data.cache import PhotoCache, open_cache
from racnn.data.image_io import read_reduced
from racnn.data.sources.catalog import Catalog, Record, read_record
from racnn.data.transforms import SourceTransform, channels_first
from racnn.errors import ConfigError, DataError
from racnn.sections import DataConfig


class Key(NamedTuple):
    """What a sample depends on besides the data set's seed, and its share of the batch's loss.

    The shares of a batch add up to 1, over all processes that train together.
    """

    epoch: int
    position: int  # of the photo in its split
    repeat: int = 0  # how often the photo was drawn before in this epoch
    share: float = 1.0


class PhotoDataset(Dataset[dict[str, torch.Tensor]]):
    """One split: photos as square sources, with their annotations in the source's frame.

    Args:
        catalog: Knows how to load a record.
        records: The photos of the split.
        config: Size and shape of the source, and the random changes.
        seed: Seed of the random changes.
        augment: Whether there are any.

    Attributes:
        pseudo_boxes: None, or a box a photo, [N, 4] xyxy in the frame of the source without random changes, see
            :mod:`racnn.models.racnn.pseudo_boxes`. They follow the random changes. Half of the samples then show the whole
            photo: after a random crop everything is larger than it will be in use, and an APN that is still uncertain of
            the size proposes the mean.
        num_noise: How many random numbers a sample brings along for the training step.
        stored: Rows [N, ...] by name, which a sample brings along in place of its photo, where there are any.
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
        self.augmented = augment
        self.cache: PhotoCache | None = None
        self.pseudo_boxes: np.ndarray | None = None
        self.num_noise = 0
        self.stored: dict[str, torch.Tensor] = {}
        whole = config.augment.model_copy(update={"crop": 1.0})
        shape = config.source_size, config.resize
        self.plain_transform = SourceTransform(*shape)
        self.whole_transform = SourceTransform(*shape, whole if augment else None)
        self.transform = SourceTransform(*shape, config.augment if augment else None)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: tuple[Any, ...]) -> dict[str, torch.Tensor]:
        """Return the sample of a :class:`Key`, or of its first numbers.

        Returns:
            ``image`` uint8 [3, S, S]; ``label`` and ``index`` int64 []; ``share`` float64 []; ``box`` float32 [4], xyxy in the
            source's frame, NaN where unknown; ``parts`` float32 [P, 3], (x, y, visible) in the source's frame; with
            ``pseudo_boxes`` also ``pseudo_box`` float32 [4], likewise. A box or part that a crop cuts off lies beyond [-1, 1].
            With ``num_noise`` also ``noise`` float32 [num_noise], even in [0, 1). Where rows are ``stored``, these
            and ``label``, ``index``, ``share`` and ``noise`` only.

        Raises:
            DataError: The photo cannot be read.
        """
        epoch, index, repeat, share = Key(*key)
        seed = mix_seed(self.seed, epoch, index, *([repeat] if repeat else []))
        sample = {
            "label": torch.tensor(self.records[index].label),
            "index": torch.tensor(index),
            "share": torch.tensor(share, dtype=torch.float64),
        }
        if self.num_noise:
            noise = np.random.default_rng((seed, 1)).random(self.num_noise, dtype=np.float32)
            sample["noise"] = torch.from_numpy(noise)
        if self.stored:
            return sample | {name: rows[index].clone() for name, rows in self.stored.items()}
        return sample | self._shown(index, seed, epoch)

    def _shown(self, index: int, seed: int, epoch: int) -> dict[str, torch.Tensor]:
        """Return what a sample shows of its photo."""
        record = self.records[index]
        # a box that was read of the photo as it stands goes with that
        if self.augmented and self.catalog.anew is not None and self.pseudo_boxes is None:
            record = self.catalog.anew(record, epoch)
        resized, size = self._resized(record) if self.cache is None else self.cache[index]
        transform = self.transform
        box_xyxy, parts = self.catalog.annotate(record)
        points = np.asarray(parts, np.float64).reshape(-1, 3)
        if self.pseudo_boxes is not None:
            in_source = (self.pseudo_boxes[index].astype(np.float64) + 1.0) / 2.0 * self.config.source_size
            x0, y0, x1, y1 = self.plain_transform.to_photo(in_source.tolist(), size)
            points = np.concatenate([points, [(x0, y0, 1.0), (x1, y1, 1.0)]])
            if seed % 2:
                transform = self.whole_transform
                resized = transform.shrink(resized, size)
        image, box, located = transform.finish(resized, size, box_xyxy, points, seed)
        shown = {
            "image": channels_first(image),
            "box": torch.from_numpy(box),
            "parts": torch.from_numpy(located),
        }
        if self.pseudo_boxes is not None:
            corners = located[-2:, :2]  # a flip swaps left and right
            shown["pseudo_box"] = torch.from_numpy(np.concatenate([corners.min(0), corners.max(0)]))
            shown["parts"] = torch.from_numpy(located[:-2])
        return shown

    def _resized(self, record: Record) -> tuple[np.ndarray, tuple[int, int]]:
        """Return a photo resized to what the square is cut from, and its own (height, width)."""
        if record.path is None or self.catalog.load is not read_record:
            photo = self.catalog.load(record)
            size = (photo.shape[0], photo.shape[1])
        else:
            try:
                photo, size = read_reduced(record.path, self.transform.resized_shape)
            except DataError as error:
                raise DataError(
                    f"{error}; `racnn data verify PHOTOS --write-list bad.txt` lists all such photos: leave them out with "
                    "--set data.exclude=bad.txt or --set data.on_error=skip (evaluate and report: --skip-damaged)"
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
                f"data.cache: the photos of '{self.catalog.dataset}' are made when they are asked for, and cannot be kept"
            )
        workers = self.config.num_workers
        self.cache = open_cache(self.config.cache, paths, self.transform, workers=workers, say=say)

    def without_augmentation(self) -> PhotoDataset:
        """Return the same photos without random changes."""
        plain = PhotoDataset(self.catalog, self.records, self.config, seed=self.seed)
        if plain.transform.resize_to == self.transform.resize_to:
            plain.cache = self.cache
        plain.pseudo_boxes = self.pseudo_boxes
        return plain


def mix_seed(*numbers: int) -> int:
    """Hash numbers of at least 0 to a seed of 64 bits."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])
