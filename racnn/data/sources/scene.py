"""Wide scenes: what a photo shows, small in a large picture, among patches of other photos that do not show it.

For what resolution at the same cost cannot do: the object is on a twentieth of the picture, anywhere in it. The rule:

* A scene is a square of ``data.scene_size`` pixels, on blurred foliage.
* The bounding square of the object's box covers :data:`AREA` of it, at a place where chance puts it, every one as likely.
* It brings some of its photo's surroundings along, which fade into the foliage.
* :data:`NUM_DISTRACTORS` patches of the same size, with the same fading edges, come from beside the objects of other photos;
  none touches the object's patch. Those of a training or validation photo come from either, but never from a test photo.

Everything is a function of the photo's name and the size of the scene, so that a scene is the same in every run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np

from racnn.data.sources.catalog import Box, Catalog, Part, Record
from racnn.data.sources.drawing import foliage
from racnn.errors import DataError

AREA = 0.05  # of the scene, that the object's bounding square covers
MARGIN = 0.2  # of that square's side, on each side: surroundings that come along and fade
NUM_DISTRACTORS = (3, 6)
TRIES = 20  # photos that are looked at for one that has room beside its object
ROOM = 0.2  # of a photo's shorter side, that a patch beside the object is to have


def in_scenes(catalog: Catalog, size: int) -> Catalog:
    """Return a data set whose photos are wide scenes; their boxes and parts are those in the scene.

    Args:
        catalog: A data set with boxes.
        size: Side of the scenes in pixels.

    Raises:
        DataError: A photo has no box.
    """
    for record in catalog.records():
        if record.path is not None and record.box_xyxy is None:
            raise DataError(
                f"data.scene_size: scenes are made of photos whose object's box is known, and {record.name} of the "
                f"{catalog.dataset} data set has none"
            )
    scenes = _Scenes(catalog, size)
    return replace(catalog, load=scenes.load, annotate=scenes.annotate)


@dataclass(frozen=True)
class _Layout:
    """What is cut from a photo, (x, y, side) in its pixels, and the ``corner`` (x, y) where its patch goes."""

    cut: tuple[int, int, int]
    corner: tuple[int, int]


class _Scenes:
    """A data set's scenes by their photos' records; a class, because workers must be able to pickle it."""

    def __init__(self, catalog: Catalog, size: int) -> None:
        self.catalog = catalog
        self.size = size
        self.side = round(AREA**0.5 * size * (1.0 + 2.0 * MARGIN))  # of a patch
        # of the catalog's own splits: before validation photos are chosen from the training photos
        self.split_of = {record.name: records for records in catalog.splits().values() for record in records}

    def load(self, record: Record) -> np.ndarray:
        """Return the scene, uint8 [size, size, 3]."""
        rng, layout = self._layout(record)
        scene = foliage(rng, self.size)
        for corner in self._corners_beside(rng, layout.corner):
            paste(scene, self._patch_beside(rng, record), corner)
        photo = self.catalog.load(record)
        paste(scene, _resized(window(photo, *layout.cut), self.side), layout.corner)
        return scene

    def annotate(self, record: Record) -> tuple[Box, tuple[Part, ...]]:
        """Return the object's box and parts in the scene."""
        _, layout = self._layout(record)
        box, parts = self.catalog.annotate(record)
        assert box is not None
        (left, top, side), (x, y) = layout.cut, layout.corner
        scale = self.side / side
        x0, x1 = (scale * (value - left) + x for value in box[::2])
        y0, y1 = (scale * (value - top) + y for value in box[1::2])
        moved = tuple((scale * (px - left) + x, scale * (py - top) + y, visible) for px, py, visible in parts)
        return (x0, y0, x1, y1), moved

    def _layout(self, record: Record) -> tuple[np.random.Generator, _Layout]:
        """Return where the object goes, and what chance has in store for the rest."""
        rng = np.random.default_rng(
            int.from_bytes(hashlib.blake2b(record.name.encode(), digest_size=8).digest())
        )
        box, _ = self.catalog.annotate(record)
        assert box is not None
        x0, y0, x1, y1 = box
        left, top = (int(value) for value in rng.integers(0, self.size - self.side + 1, 2))
        side = max(1, round(max(x1 - x0, y1 - y0) * (1.0 + 2.0 * MARGIN)))
        cut = round((x0 + x1 - side) / 2.0), round((y0 + y1 - side) / 2.0), side
        return rng, _Layout(cut, (left, top))

    def _corners_beside(self, rng: np.random.Generator, corner: tuple[int, int]) -> list[tuple[int, int]]:
        """Return the corners of patches that do not touch the object's; they may lie on one another."""
        found: list[tuple[int, int]] = []
        wanted = int(rng.integers(NUM_DISTRACTORS[0], NUM_DISTRACTORS[1] + 1))
        while len(found) < wanted:  # even beside an object in the middle a sixth of all places is free
            x, y = (int(value) for value in rng.integers(0, self.size - self.side + 1, 2))
            if max(abs(x - corner[0]), abs(y - corner[1])) >= self.side:
                found.append((x, y))
        return found

    def _patch_beside(self, rng: np.random.Generator, record: Record) -> np.ndarray:
        """Return a patch from beside the object of another photo of the split."""
        others = self.split_of[record.name]
        for _ in range(TRIES):
            other = others[int(rng.integers(len(others)))]
            if other.name == record.name and len(others) > 1:
                continue
            photo = self.catalog.load(other)
            box, _ = self.catalog.annotate(other)
            assert box is not None
            left, top, right, bottom = largest_beside(box, photo.shape)
            side = min(right - left, bottom - top)
            if side >= ROOM * min(photo.shape[:2]):
                x, y = int(rng.integers(left, right - side + 1)), int(rng.integers(top, bottom - side + 1))
                return _resized(photo[y : y + side, x : x + side], self.side)
        return foliage(rng, self.side)


def largest_beside(box: Box, shape: Sequence[int]) -> tuple[int, int, int, int]:
    """Return of the strips left of, right of, above and below a box the one that is widest across, (x0, y0, x1, y1)."""
    height, width = shape[:2]
    x0, y0, x1, y1 = (
        max(0, int(box[0])),
        max(0, int(box[1])),
        min(width, int(box[2]) + 1),
        min(height, int(box[3]) + 1),
    )
    strips = (0, 0, x0, height), (x1, 0, width, height), (0, 0, width, y0), (0, y1, width, height)
    return max(strips, key=lambda strip: min(strip[2] - strip[0], strip[3] - strip[1]))


def _resized(patch: np.ndarray, side: int) -> np.ndarray:
    """Return a square enlarged or averaged down."""
    way = cv2.INTER_AREA if side < len(patch) else cv2.INTER_CUBIC
    return cv2.resize(patch, (side, side), interpolation=way)


def window(photo: np.ndarray, x: int, y: int, side: int) -> np.ndarray:
    """Return a square of a photo that may reach beyond its border, where the photo is mirrored."""
    height, width = photo.shape[:2]
    columns, rows = (
        _mirrored(np.arange(start, start + side), end) for start, end in ((x, width), (y, height))
    )
    return photo[rows[:, None], columns[None, :]]


def _mirrored(positions: np.ndarray, end: int) -> np.ndarray:
    """Return positions in [0, end) for any, as if the row went back and forth."""
    folded = positions % (2 * end)
    return np.where(folded < end, folded, 2 * end - 1 - folded)


def paste(scene: np.ndarray, patch: np.ndarray, corner: tuple[int, int]) -> None:
    """Lay a square patch over a part of a scene; it fades towards its edges."""
    side = len(patch)
    width = max(1, round(side * MARGIN / (1.0 + 2.0 * MARGIN)))
    steps = np.minimum(np.arange(side), np.arange(side)[::-1])
    ramp = np.clip((steps + 0.5) / width, 0.0, 1.0)
    opacity = (0.5 - 0.5 * np.cos(np.pi * ramp)).astype(np.float32)
    alpha = (opacity[:, None] * opacity[None, :])[:, :, None]
    x, y = corner
    below = scene[y : y + side, x : x + side]
    below[:] = np.rint(alpha * patch + (1.0 - alpha) * below).astype(np.uint8)
