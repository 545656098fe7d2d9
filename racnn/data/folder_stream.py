"""Photos of a user, one batch after another, however many there are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from racnn.data.image_io import read_reduced
from racnn.data.listing import check_places, iter_photos
from racnn.data.loader import start_worker
from racnn.data.transforms import SourceTransform
from racnn.errors import DataError
from racnn.sections import DataConfig


@dataclass
class PhotoBatch:
    """Some photos in order: their paths, the size (h, w) of each that can be read, why of the others, by position.

    ``images`` are the sources of those that can be read, uint8 [K, 3, S, S].
    """

    paths: list[Path]
    sizes: list[tuple[int, int] | None]
    errors: dict[int, str]
    images: Tensor

    def pin_memory(self) -> PhotoBatch:
        """Return the batch where a GPU can fetch it, as the loader asks."""
        return replace(self, images=self.images.pin_memory())


class PhotoStream(IterableDataset[PhotoBatch]):
    """Batches of the photos in files and folders. Nothing is listed or read before it is its turn.

    With workers each reads every so many-th batch, which is the order in which the loader asks them in turn.
    """

    def __init__(self, places: Iterable[Path], transform: SourceTransform, batch_size: int) -> None:
        self.places = list(places)
        self.transform = transform
        self.batch_size = batch_size

    def __iter__(self) -> Iterator[PhotoBatch]:
        worker = get_worker_info()
        number, total = (worker.id, worker.num_workers) if worker else (0, 1)
        paths = iter_photos(self.places)
        batches: Iterator[list[Path]] = iter(lambda: list(islice(paths, self.batch_size)), [])
        yield from map(self._read, islice(batches, number, None, total))

    def _read(self, paths: list[Path]) -> PhotoBatch:
        side = self.transform.source_size
        batch = PhotoBatch(paths, [None] * len(paths), {}, torch.zeros(0, 3, side, side, dtype=torch.uint8))
        images = []
        for position, path in enumerate(paths):
            try:
                photo, size = read_reduced(path, self.transform.resized_shape)
            except DataError as error:
                batch.errors[position] = str(error)
                continue
            images.append(self.transform.source(photo, size))
            batch.sizes[position] = size
        return replace(batch, images=torch.stack(images)) if images else batch


def photo_batches(
    places: Iterable[Path], config: DataConfig, *, batch_size: int, workers: int
) -> tuple[DataLoader[PhotoBatch], SourceTransform]:
    """Return the batches of the photos named and of those inside the folders named, and how they are made square.

    Raises:
        DataError: A path does not exist, or a folder holds no photos.
    """
    places = list(places)
    check_places(places)
    transform = SourceTransform(config.source_size, config.resize)
    loader: DataLoader[PhotoBatch] = DataLoader(
        PhotoStream(places, transform, batch_size),
        batch_size=None,
        num_workers=workers,
        pin_memory=torch.cuda.is_initialized(),
        worker_init_fn=start_worker,
    )
    return loader, transform
