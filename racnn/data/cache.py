"""A cache of decoded, resized photos on disk: one file of pixels that every worker maps, and an index beside it.

Decoding a JPEG takes most of a sample's time. A cache is written once, before training, and read without copying. It
is keyed by the content of the photos, in their order, and by everything that shapes the pixels, so that a changed photo
or setting makes a new one and nothing stale is ever read. It is written under another name and renamed when it is
complete: of two programs that write the same cache at once, the second finds it there and takes it.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import PIL

from racnn.data.photos import photo_size, read_reduced
from racnn.data.transforms import SourceTransform
from racnn.errors import DataError

FORMAT = 1
PIXELS, INDEX = "pixels.u8", "index.json"
AT_ONCE = 16  # photos given to a process together
STALE = 24 * 3600  # seconds after which an unfinished cache was abandoned


class PhotoCache:
    """Photos as :meth:`SourceTransform.shrink` returns them, by position.

    Args:
        folder: Of a finished cache.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        self._shapes: list[list[int]] = index["shapes"]
        self._sizes: list[list[int]] = index["sizes"]
        self._starts = [0, *np.cumsum([_num_bytes(shape) for shape in self._shapes]).tolist()]
        self._pixels: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self._shapes)

    def __getitem__(self, position: int) -> tuple[np.ndarray, tuple[int, int]]:
        """Return a resized photo, uint8 [h, w, 3], not to be written to, and the photo's own (height, width)."""
        if self._pixels is None:
            self._pixels = np.memmap(self.folder / PIXELS, np.uint8, mode="r")
        height, width = self._shapes[position]
        pixels = self._pixels[self._starts[position] : self._starts[position + 1]]
        own_height, own_width = self._sizes[position]
        return pixels.reshape(height, width, 3), (own_height, own_width)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the map behind: a process that gets a copy maps the file itself."""
        return self.__dict__ | {"_pixels": None}


def open_cache(
    root: Path,
    paths: Sequence[Path],
    transform: SourceTransform,
    *,
    workers: int = 0,
    say: Callable[[str], None] = print,
) -> PhotoCache:
    """Return the cache of some photos, written first where it is not there yet.

    Args:
        root: Folder of all caches.
        paths: Of the photos.
        transform: Its resizing, not its random changes, shapes the pixels.
        workers: Processes that read photos; 0 reads in this one.
        say: Told the size before anything is written.

    Raises:
        DataError: A photo cannot be read, or the disk has not enough room.
    """
    root = root.expanduser()
    folder = root / _key(paths, transform)
    if not (folder / INDEX).is_file():
        sizes = [photo_size(path) for path in paths]
        shapes = [transform.resized_shape(*size) for size in sizes]
        root.mkdir(parents=True, exist_ok=True)
        _sweep(root)
        needed, free = sum(map(_num_bytes, shapes)), shutil.disk_usage(root).free
        say(f"data.cache: {len(paths)} photos, {_gigabytes(needed)} to write to {folder}")
        if needed > free:
            raise DataError(f"data.cache: {root}: {_gigabytes(needed)} needed, {_gigabytes(free)} free")
        _write(folder, paths, shapes, sizes, transform, workers)
    return PhotoCache(folder)


def _key(paths: Sequence[Path], transform: SourceTransform) -> str:
    """Return a name for the content of some photos, their order, and all that shapes their pixels."""
    settings = [FORMAT, transform.resize, transform.resize_to, PIL.__version__, cv2.__version__]
    sha = hashlib.sha256(json.dumps(settings).encode())
    with ThreadPoolExecutor() as pool:
        for digest in pool.map(_digest, paths):
            sha.update(digest)
    return sha.hexdigest()[:32]


def _digest(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError as error:
        raise DataError(f"{path}: cannot be read as a photo: {error.strerror}") from None


def _write(
    folder: Path,
    paths: Sequence[Path],
    shapes: Sequence[tuple[int, int]],
    sizes: Sequence[tuple[int, int]],
    transform: SourceTransform,
    workers: int,
) -> None:
    """Write a cache under another name and rename it."""
    unfinished = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.tmp")
    unfinished.mkdir()
    try:
        with (unfinished / PIXELS).open("wb") as file:
            for image in _resized(paths, transform, workers):
                file.write(image.data)
            file.flush()
            os.fsync(file.fileno())
        index = {"shapes": shapes, "sizes": sizes, "names": [path.name for path in paths]}
        (unfinished / INDEX).write_text(json.dumps(index), encoding="utf-8")
        try:
            unfinished.rename(folder)
        except OSError:
            if not (folder / INDEX).is_file():  # no other program was faster: a real error
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _resized(paths: Sequence[Path], transform: SourceTransform, workers: int) -> Iterable[np.ndarray]:
    """Yield the photos in order, as many at a time as there are workers."""
    plain = SourceTransform(transform.resize_to, transform.resize)  # resizes alike and travels light
    jobs = [(path, plain) for path in paths]
    if workers == 0:
        yield from map(_resize_one, jobs)
        return
    context = multiprocessing.get_context("spawn")  # threads of torch and OpenCV do not survive a fork
    block = 4 * workers * AT_ONCE  # so that finished photos do not pile up in memory
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        for start in range(0, len(jobs), block):
            yield from pool.map(_resize_one, jobs[start : start + block], chunksize=AT_ONCE)


def _resize_one(job: tuple[Path, SourceTransform]) -> np.ndarray:
    path, transform = job
    image, size = read_reduced(path, transform.resized_shape)
    return np.ascontiguousarray(transform.shrink(image, size))


def _sweep(root: Path) -> None:
    """Delete what a program that was killed left unfinished."""
    for left in root.glob(".*.tmp"):
        if time.time() - left.stat().st_mtime > STALE:
            shutil.rmtree(left, ignore_errors=True)


def _num_bytes(shape: Sequence[int]) -> int:
    height, width = shape
    return height * width * 3


def _gigabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.2f} GB"
