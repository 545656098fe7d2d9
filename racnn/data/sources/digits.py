"""Handwritten digits somewhere on a larger canvas, with clutter: what networks that glimpse in sequence are measured on.

MNIST's own four files (LeCun, Cortes, Burges), plain or as .gz, are read from ``data.root``. A training digit is put to another place
in every epoch; validation and test digits have one place each. As the generator that the published figures come from, by the authors of
"Recurrent Models of Visual Attention" (Mnih et al., NeurIPS 2014): the digit anywhere on the canvas, then patches of 8x8 pixels from
digits of the same file, anywhere, added and clipped. So clutter, and the second of two digits, may be of a digit that is kept for
validation, but never of a test digit.

Convention
    Canvases are uint8 [S, S, 3], grey, of side ``data.source_size``. Boxes are those of the digit's ink, in pixels.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from racnn.data.sources.catalog import Box, Catalog, Part, Record
from racnn.errors import ConfigError, DataError
from racnn.sections import AugmentConfig, DataConfig

SIDE = 28  # pixels of a digit
PATCH = 8  # pixels of a piece of clutter
# MD5 of the four files, unpacked.
FILES = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}
PARTS = ("train", "t10k")
PLAIN = AugmentConfig(crop=1.0, flip=False, color=0.0)


def digits(config: DataConfig) -> Catalog:
    """Describe the digits; each canvas is made when it is asked for.

    Classes are the ten digits, or with ``digits.count`` 2 the 55 unordered pairs. ``digits.num_train`` takes only the first so many.

    Raises:
        ConfigError: A key asks for what digits do not have.
        DataError: A file is missing or is not MNIST's, or the canvas has no room.
    """
    if config.augment != PLAIN:
        raise ConfigError(
            "data.augment: digits are put to new places, and are neither cut off, mirrored nor coloured; set "
            "data.augment.crop=1 data.augment.flip=false data.augment.color=0"
        )
    if config.classes is not None or config.scene_size:
        key = "classes" if config.classes is not None else "scene_size"
        raise ConfigError(f"data.{key}: is of photos; digits are always all ten, on a canvas of their own")
    if config.root is None:
        raise DataError(
            f"data.root: expected the folder with MNIST's files {', '.join(FILES)}, plain or as .gz"
        )
    options, root = config.digits, config.root.expanduser()
    if not root.is_dir():
        raise DataError(
            f"data.root: {root}: no such folder; expected the one with MNIST's files {', '.join(FILES)}"
        )
    if config.source_size < SIDE:
        raise DataError(
            f"data.source_size: {config.source_size}, but a digit has {SIDE} pixels a side, and needs so many"
        )
    labels = {part: _labels(root, part) for part in PARTS}
    pairs = [(a, b) for a in range(10) for b in range(a, 10)]
    class_names = [str(n) for n in range(10)] if options.count == 1 else [f"{a} and {b}" for a, b in pairs]
    most = {
        "train": min(options.num_train or len(labels["train"]), len(labels["train"])),
        "t10k": len(labels["t10k"]),
    }
    canvases = _Canvases(root, config.source_size, options.count, options.clutter, most)

    def records(part: str) -> list[Record]:
        found = []
        for number in range(most[part]):
            shown = sorted(int(labels[part][i]) for i in canvases.shown(part, number))
            label = shown[0] if options.count == 1 else pairs.index((shown[0], shown[1]))
            found.append(Record(f"{part}/{number:05d}", label))
        return found

    return Catalog(
        dataset="digits",
        class_names=class_names,
        train=records("train"),
        val=None,
        test=records("t10k"),
        part_names=[f"digit {number}" for number in range(1, options.count + 1)],
        focus_parts=(0,),
        load=canvases.load,
        annotate=canvases.annotate,
        anew=canvases.anew,
    )


class _Canvases:
    """Canvases by the name of a record, ``part/number`` or ``part/number@epoch``; a class, because workers must be able to pickle it."""

    def __init__(self, root: Path, size: int, count: int, clutter: int, most: dict[str, int]) -> None:
        self.root, self.size, self.count, self.clutter, self.most = root, size, count, clutter, most
        self._last: tuple[str, Any] = ("", None)

    def shown(self, part: str, number: int) -> list[int]:
        """Return the numbers of the digits that a canvas shows: the record's own and, of two, another one of its part."""
        if self.count == 1:
            return [number]
        other = np.random.default_rng((7, PARTS.index(part), number)).integers(self.most[part])
        return [number, int(other)]

    def anew(self, record: Record, epoch: int) -> Record:
        """Return the record of the same digits at other places, as an epoch of training has them."""
        return Record(f"{record.name}@{epoch}", record.label)

    def load(self, record: Record) -> np.ndarray:
        """Return the canvas."""
        canvas: np.ndarray = self._make(record.name)[0]
        return canvas

    def annotate(self, record: Record) -> tuple[Box | None, tuple[Part, ...]]:
        """Return the box of the digit, of two of both together, and the middle of each."""
        boxes = self._make(record.name)[1]
        low, high = boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)
        box = float(low[0]), float(low[1]), float(high[0]), float(high[1])
        return box, tuple(((b[0] + b[2]) / 2, (b[1] + b[3]) / 2, 1.0) for b in boxes.tolist())

    def _make(self, name: str) -> Any:
        if self._last[0] == name:
            return self._last[1]
        place, _, epoch = name.partition("@")
        part, number = place.split("/")
        images = _images(self.root, part)
        rng = np.random.default_rng((PARTS.index(part), int(number), int(epoch) + 1 if epoch else 0))
        canvas = np.zeros((self.size, self.size), np.uint16)
        boxes, room = [], self.size - SIDE + 1
        for shown in self.shown(part, int(number)):
            y, x = rng.integers(room, size=2)
            canvas[y : y + SIDE, x : x + SIDE] += images[shown]
            rows, columns = (np.flatnonzero(images[shown].any(axis=axis)) for axis in (1, 0))
            boxes.append((x + columns[0], y + rows[0], x + columns[-1] + 1, y + rows[-1] + 1))
        if self.clutter:
            others = rng.integers(self.most[part], size=self.clutter)
            starts = rng.integers(SIDE - PATCH + 1, size=(self.clutter, 2))
            places = rng.integers(self.size - PATCH + 1, size=(self.clutter, 2))
            for other, (i, j), (y, x) in zip(others, starts, places, strict=True):
                canvas[y : y + PATCH, x : x + PATCH] += images[other, i : i + PATCH, j : j + PATCH]
        made = np.repeat(np.minimum(canvas, 255).astype(np.uint8)[..., None], 3, axis=2), np.array(boxes)
        self._last = name, made
        return made


@functools.lru_cache(maxsize=4)
def _images(root: Path, part: str) -> np.ndarray:
    """Return the digits of 'train' or 't10k', uint8 [N, 28, 28]."""
    return _read(root, f"{part}-images-idx3-ubyte", 16).reshape(-1, SIDE, SIDE)


@functools.lru_cache(maxsize=4)
def _labels(root: Path, part: str) -> np.ndarray:
    """Return their labels, uint8 [N]."""
    return _read(root, f"{part}-labels-idx1-ubyte", 8)


def _read(root: Path, name: str, head: int) -> np.ndarray:
    """Return the bytes of one of the files after its head.

    Raises:
        DataError: It is missing, damaged, or another one.
    """
    plain, packed = root / name, root / f"{name}.gz"
    path = plain if plain.is_file() else packed
    try:
        content = path.read_bytes() if path is plain else gzip.decompress(path.read_bytes())
    except FileNotFoundError:
        raise DataError(
            f"data.root: {plain}: no such file, nor {packed.name}; expected MNIST's own four files"
        ) from None
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"data.root: {path}: cannot be read ({error})") from None
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if found != FILES[name]:
        raise DataError(
            f"data.root: {path}: is not MNIST's file of that name (MD5 {found}, expected {FILES[name]}); fetch it again"
        )
    return np.frombuffer(content, np.uint8, offset=head)
