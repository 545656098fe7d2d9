"""How large a photo becomes on its way to the square source, and where a box of the source lies in the photo."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

Resize = Literal["squash", "crop"]


def resized_shape(resize: Resize, to: int, height: int, width: int) -> tuple[int, int]:
    """Return the height and width that a photo is resized to before the square of a side is cut from it."""
    if resize == "squash":
        return to, to
    scale = to / min(height, width)
    return round(height * scale), round(width * scale)


def box_in_photo(
    box_xyxy: Sequence[float], side: int, resized: tuple[int, int], photo: tuple[int, int]
) -> list[float]:
    """Return a box of the source in pixels of the photo.

    Args:
        box_xyxy: In pixels of the source, the middle of the resized photo.
        side: Of the source.
        resized: (height, width) of the resized photo.
        photo: (height, width) of the photo.
    """
    (height, width), (resized_h, resized_w) = photo, resized
    top, left = (resized_h - side) // 2, (resized_w - side) // 2
    x0, y0, x1, y1 = box_xyxy
    x_scale, y_scale = width / resized_w, height / resized_h
    return [(x0 + left) * x_scale, (y0 + top) * y_scale, (x1 + left) * x_scale, (y1 + top) * y_scale]
