"""From a photo of any shape to a square source; the only file that knows albumentations.

Convention:
    Photos are uint8 [h, w, 3], RGB. In the photo, boxes (xyxy) and points (x, y) are in pixels, x right, y down, the
    outer corners at (0, 0) and (w, h). In the source they are in its frame: [-1, 1], the outer corners at +-1.
    Boxes and points follow the pixels exactly and are never clipped: what is cut off lies outside [-1, 1].

    Three things in albumentations 2.0.8 would break this, and are dealt with here:
    - Keypoints are pixel centres (a flip maps x to w - 1 - x), so ours are moved by half a pixel on the way in and out.
    - Resizing scales keypoints by the wanted ratio, not by that of the rounded sizes, so the photo is resized first.
    - `Compose.set_random_seed` gives every transform the same seed, which ties the crop's row to the flip and to
      the brightness (measured correlations: -0.86 and 1.00), so each transform gets a seed of its own.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from racnn.data.shapes import Resize, box_in_photo, resized_shape
from racnn.sections import AugmentConfig

Box = tuple[float, float, float, float]
Points = Sequence[Sequence[float]] | np.ndarray  # (x, y, visible), [P, 3]


class SourceTransform:
    """Make the square source of a photo, with or without random changes.

    Without augmentation ``squash`` resizes both sides to the source's, and ``crop`` resizes the short side and
    cuts out the middle. With it the photo is resized to ``source_size / augment.crop`` instead and a random square
    is cut out, which may be flipped left to right and changed in brightness, contrast and saturation.

    Args:
        source_size: Side S of the source in pixels.
        resize: How a photo that is not square becomes one.
        augment: The random changes, or None for none.
    """

    def __init__(
        self,
        source_size: int,
        resize: Resize = "squash",
        augment: AugmentConfig | None = None,
    ) -> None:
        self.source_size = source_size
        self.resize = resize
        self.resize_to = source_size if augment is None else round(source_size / augment.crop)
        changes = augment is not None and (augment.crop < 1.0 or augment.flip or augment.color > 0.0)
        self.random_changes = (
            _random_changes(source_size, augment) if augment is not None and changes else None
        )

    def __call__(
        self, image: np.ndarray, box_xyxy: Box | None, parts: Points, seed: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the source of one photo, and its box and parts in the source's frame.

        Args:
            image: The upright photo, uint8 [h, w, 3].
            box_xyxy: A box in the photo's pixels, or None.
            parts: Points (x, y, visible) in the photo's pixels, [P, 3].
            seed: Chooses the random changes; the same seed gives the same source. At least 0.

        Returns:
            The source, uint8 [S, S, 3]; the box, float32 [4], NaN where there is none; the parts, float32 [P, 3],
            of which invisible ones are (0, 0, 0).
        """
        size = (image.shape[0], image.shape[1])
        return self.finish(self.shrink(image, size), size, box_xyxy, parts, seed)

    def shrink(self, image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """Resize a photo, maybe decoded smaller than its own (h, w), to what the square is cut from; no chance in it."""
        return _resize(image, *self.resized_shape(*size))

    def finish(
        self, image: np.ndarray, size: tuple[int, int], box_xyxy: Box | None, parts: Points, seed: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Do the rest: what a call returns, from a photo that :meth:`shrink` has resized and its own size."""
        parts = np.asarray(parts, np.float64).reshape(-1, 3)
        box = (np.nan,) * 4 if box_xyxy is None else box_xyxy
        # All four corners: the sides of the box stay upright, but a flip swaps left and right.
        corners = np.array([[x, y] for x in box[0::2] for y in box[1::2]])
        points = np.concatenate([corners, parts[:, :2]])

        height, width = size
        points = points * (image.shape[1] / width, image.shape[0] / height)
        if self.random_changes is None:
            top, left = ((side - self.source_size) // 2 for side in image.shape[:2])
            image = image[top : top + self.source_size, left : left + self.source_size]
            points = points - (left, top)
        else:
            image, points = _apply(self.random_changes, image, points, seed)

        points = points / self.source_size * 2 - 1
        box_in_frame = np.concatenate([points[:4].min(0), points[:4].max(0)])
        visible = parts[:, 2:] > 0
        parts_in_frame = np.where(visible, np.concatenate([points[4:], visible], 1), 0.0)
        return image, box_in_frame.astype(np.float32), parts_in_frame.astype(np.float32)

    def source(self, image: np.ndarray, size: tuple[int, int]) -> Tensor:
        """Return the source alone, uint8 [3, S, S], of a photo like :meth:`shrink`'s; without random changes."""
        assert self.random_changes is None
        return channels_first(self.finish(self.shrink(image, size), size, None, (), 0)[0])

    def to_photo(self, box_xyxy: Sequence[float], photo_size: tuple[int, int]) -> list[float]:
        """Return a box in pixels of the source, made without augmentation, in pixels of the photo of size (h, w)."""
        return box_in_photo(box_xyxy, self.source_size, self.resized_shape(*photo_size), photo_size)

    def resized_shape(self, height: int, width: int) -> tuple[int, int]:
        """Return the height and width that a photo is resized to before the square is cut from it."""
        return resized_shape(self.resize, self.resize_to, height, width)


def channels_first(image: np.ndarray) -> Tensor:
    """Return an image uint8 [h, w, 3] as a tensor [3, h, w]."""
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))


def _random_changes(size: int, augment: AugmentConfig) -> Any:
    """Build the random changes of training photos that already have their size before the crop."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # or importing it calls home
    import albumentations as A  # here, because it takes seconds

    changes: list[Any] = [A.RandomCrop(size, size)]
    if augment.flip:
        changes.append(A.HorizontalFlip(p=0.5))
    if augment.color > 0:
        reach = (1 - augment.color, 1 + augment.color)
        changes.append(
            A.ColorJitter(brightness=reach, contrast=reach, saturation=reach, hue=(0.0, 0.0), p=1.0)
        )
    return A.Compose(changes, keypoint_params=A.KeypointParams(format="xy", remove_invisible=False))


def _apply(changes: Any, image: np.ndarray, points: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Change a photo and its points as the seed says."""
    seeds = np.random.SeedSequence(seed).generate_state(len(changes.transforms), np.uint64)
    for transform, own_seed in zip(changes.transforms, seeds, strict=True):
        transform.set_random_seed(int(own_seed))
    changed = changes(image=image, keypoints=points - 0.5)
    return changed["image"], np.asarray(changed["keypoints"], np.float64) + 0.5


def _resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Average down the sides that shrink, then interpolate those that grow."""
    smaller = min(height, image.shape[0]), min(width, image.shape[1])
    if image.shape[:2] != smaller:
        image = cv2.resize(image, smaller[::-1], interpolation=cv2.INTER_AREA)
    if image.shape[:2] != (height, width):
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    return image
