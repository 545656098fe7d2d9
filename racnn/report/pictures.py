"""Pictures inside a page: small, and as text."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image
from torch import Tensor

from racnn.data import PhotoDataset
from racnn.data.image_io import read_reduced
from racnn.data.sources.catalog import Record, read_record
from racnn.evaluation import draw

THUMB, PHOTO, VIEW = 88, 200, 112  # longest sides in pixels
QUALITY = 55  # of WebP


def embedded(picture: Image.Image | np.ndarray | Tensor, side: int) -> str:
    """Return a picture, made to fit a square of so many pixels, as an address that holds it."""
    image = draw.to_image(picture)
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.save(file, format="WEBP", quality=QUALITY, method=4)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode("ascii")


def small_photo(photos: PhotoDataset, record: Record, side: int) -> np.ndarray:
    """Return a photo, decoded no larger than is needed for a picture of a side."""
    if record.path is None or photos.catalog.load is not read_record:
        return photos.catalog.load(record)

    def needed(height: int, width: int) -> tuple[int, int]:
        factor = side / max(height, width)
        return max(1, round(factor * height)), max(1, round(factor * width))

    return read_reduced(record.path, needed)[0]


def with_boxes(photo: np.ndarray, boxes_xyxy: Sequence[Sequence[float]], side: int) -> Image.Image:
    """Return a photo made to fit a square, its boxes drawn on it afterwards, so that their lines can be seen."""
    image = draw.to_image(photo)
    factor = min(1.0, side / max(image.size))
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    return draw.draw_boxes(np.asarray(image), [[factor * value for value in box] for box in boxes_xyxy])
