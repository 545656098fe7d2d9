"""A cache of decoded, resized photos on disk: one file of pixels that every worker maps, and an index beside it.

Decoding a JPEG takes most of a sample's time. A cache is written once, before training, and read without copying. It
is keyed by the content of the photos, in their order, and by everything that shapes the pixels, so that a changed photo
or setting makes a new one and nothing stale is ever read. It is written under another name and renamed when it is
complete: of two programs that write the same cache at once, the second finds it there and takes it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import PIL
from tqdm import tqdm

from racnn.data.contents import read_contents
from racnn.data.image_io import photo_size, read_reduced
from racnn.data.transforms import SourceTransform
from racnn.errors import DataError
from racnn.written import make_folders, refuse_blocked, remove_empty

FORMAT = 2  # raise it when photos are decoded otherwise
PIXELS, INDEX = "pixels.u8", "index.json"
BLOCK = 16  # photos a thread is given before the finished ones are written
UNFINISHED = re.compile(r"\.[0-9a-f]{32}\.[0-9a-f]{8}\.tmp")
STALE = 24 * 3600  # seconds without a byte after which an unfinished cache was abandoned


class PhotoCache:
    """Photos as :meth:`SourceTransform.shrink` returns them, by position, from the folder of a finished cache."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        self._shapes: list[list[int]] = index["shapes"]
        self._sizes: list[list[int]] = index["sizes"]
        self._starts = [0, *np.cumsum([3 * math.prod(shape) for shape in self._shapes]).tolist()]
        self.num_bytes = self._starts[-1]  # of the pixels' file
        self._pixels: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self._shapes)

    def __getitem__(self, position: int) -> tuple[np.ndarray, tuple[int, int]]:
        """Return a resized photo, uint8 [h, w, 3], not to be written to, and the photo's own (height, width)."""
        if self._pixels is None:
            self._pixels = np.memmap(self.folder / PIXELS, np.uint8, mode="r")
        pixels = self._pixels[self._starts[position] : self._starts[position + 1]]
        height, width = self._sizes[position]
        return pixels.reshape(*self._shapes[position], 3), (height, width)

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
        paths: Paths of the photos.
        transform: Its resizing, not its random changes, shapes the pixels.
        workers: Threads that read photos; 0 is 1.
        say: Told the size before anything is written.

    Raises:
        ConfigError: A file stands where the folder should be.
        DataError: A photo cannot be read, or the disk has not enough room.
    """
    root = root.expanduser()
    folder = root / _key(paths, transform)
    if (finished := _finished(folder)) is not None:
        return finished
    refuse_blocked(root, "data.cache")
    _remove(folder)  # damaged, if it is there
    sizes = [photo_size(path) for path in paths]
    shapes = [transform.resized_shape(*size) for size in sizes]
    made = make_folders(root)
    try:
        _sweep(root)
        needed, free = 3 * sum(map(math.prod, shapes)) / 1e9, shutil.disk_usage(root).free / 1e9
        say(f"data.cache: {len(paths)} photos, {needed:.2f} GB to write to {folder}")
        if needed > free:
            raise DataError(f"data.cache: {root}: {needed:.2f} GB needed, {free:.2f} GB free")
        _write(folder, paths, {"shapes": shapes, "sizes": sizes}, transform, workers)
    finally:
        remove_empty(made)
    return PhotoCache(folder)


def _finished(folder: Path) -> PhotoCache | None:
    """Return the cache in a folder; None where there is none, or one that was cut short."""
    try:
        found = PhotoCache(folder)
        return found if (folder / PIXELS).stat().st_size == found.num_bytes else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _key(paths: Sequence[Path], transform: SourceTransform) -> str:
    """Return a name for the content of some photos, their order, and all that shapes their pixels."""
    settings = [FORMAT, transform.resize, transform.resize_to, PIL.__version__, cv2.__version__]
    sha = hashlib.sha256(json.dumps(settings).encode())
    for content in read_contents(paths):
        sha.update(bytes.fromhex(content.sha256))
    return sha.hexdigest()[:32]


def _write(
    folder: Path, paths: Sequence[Path], index: dict[str, Any], transform: SourceTransform, workers: int
) -> None:
    """Write a cache under another name and rename it."""
    unfinished = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.tmp")
    unfinished.mkdir()
    try:
        with (unfinished / PIXELS).open("wb") as pixels:
            images = _resized(paths, transform, workers)
            for image in tqdm(images, desc="data.cache", total=len(paths), unit="photo", disable=None):
                pixels.write(image.data)
            pixels.flush()
            os.fsync(pixels.fileno())
        with (unfinished / INDEX).open("w", encoding="utf-8") as file:
            json.dump(index, file)
            file.flush()
            os.fsync(file.fileno())
        try:
            unfinished.rename(folder)
        except OSError:
            if _finished(folder) is None:  # no other program was faster: a real error
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _resized(paths: Sequence[Path], transform: SourceTransform, workers: int) -> Iterator[np.ndarray]:
    """Yield the photos in order, a few ahead; decoding and resizing leave the interpreter to other threads."""

    def resize(path: Path) -> np.ndarray:
        image, size = read_reduced(path, transform.resized_shape)
        return np.ascontiguousarray(transform.shrink(image, size))

    ahead = max(1, workers)
    with ThreadPoolExecutor(ahead) as pool:
        for start in range(0, len(paths), BLOCK * ahead):  # so that finished photos do not pile up in memory
            yield from pool.map(resize, paths[start : start + BLOCK * ahead])


def _sweep(root: Path) -> None:
    """Delete what a program that was killed left unfinished."""
    for left in root.iterdir():
        if UNFINISHED.fullmatch(left.name):
            with contextlib.suppress(FileNotFoundError):  # its writer has just finished
                if time.time() - (left / PIXELS).stat().st_mtime > STALE:
                    _remove(left)


def _remove(folder: Path) -> None:
    """Delete a cache, and nothing that was put beside it.

    Raises:
        DataError: Something was.
    """
    if not folder.is_dir():
        return
    if others := sorted(path.name for path in folder.iterdir() if path.name not in (PIXELS, INDEX)):
        raise DataError(
            f"data.cache: {folder}: a damaged cache, which is not replaced because {others[0]} lies in it; move that away"
        )
    for name in (PIXELS, INDEX):
        (folder / name).unlink(missing_ok=True)
    folder.rmdir()
