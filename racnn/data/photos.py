"""Find photos in folders and turn them into pixels."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from racnn.errors import DataError

ORIENTATION = 0x0112  # the EXIF tag
PHOTO_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"})


def read_photo(path: Path) -> np.ndarray:
    """Return a photo as it is meant to be seen: upright, RGB, transparency dropped, uint8 [h, w, 3].

    Raises:
        DataError: The file is missing, is not a photo, is damaged or cut short, or claims too many pixels.
    """
    try:
        with Image.open(path) as photo:
            limit = Image.MAX_IMAGE_PIXELS
            if limit and photo.width * photo.height > limit:
                raise DataError(
                    f"expected at most {limit} pixels, the header says {photo.width}x{photo.height}"
                )
            return np.array(_to_rgb(ImageOps.exif_transpose(photo)))
    except FileNotFoundError:
        raise DataError(f"{path}: no such photo") from None
    except Exception as error:  # decoders of damaged files raise nearly anything
        raise DataError(f"{path}: cannot be read as a photo: {error or type(error).__name__}") from None


def photo_size(path: Path) -> tuple[int, int]:
    """Return (height, width) of the upright photo from its header, without decoding it.

    Raises:
        DataError: The header cannot be read.
    """
    try:
        with Image.open(path) as photo:
            width, height = photo.size
            turned = photo.getexif().get(ORIENTATION, 1) in (5, 6, 7, 8)
    except Exception as error:
        raise DataError(f"{path}: cannot be read as a photo: {error or type(error).__name__}") from None
    return (width, height) if turned else (height, width)


def _to_rgb(photo: Image.Image) -> Image.Image:
    if photo.mode.startswith("I"):  # 16 bits, which convert() would clip at 255
        levels = np.asarray(photo).astype(np.float64) / 257
        photo = Image.fromarray(np.clip(np.rint(levels), 0, 255).astype(np.uint8))
    elif photo.mode in ("P", "PA"):  # a palette may hold transparency
        photo = photo.convert("RGBA")
    return photo.convert("RGB")


def find_photos(places: Iterable[Path]) -> list[Path]:
    """Return the photos named, and those inside the folders named, sorted folder by folder.

    Raises:
        DataError: A path does not exist, or a folder holds no photos.
    """
    found: list[Path] = []
    for place in places:
        if place.is_dir():
            inside = sorted(photos_below(place))
            if not inside:
                raise DataError(
                    f"{place}: no photos in this folder (expected {', '.join(sorted(PHOTO_SUFFIXES))})"
                )
            found.extend(inside)
        elif place.is_file():
            found.append(place)
        else:
            raise DataError(f"{place}: no such photo or folder")
    return found


def photos_below(place: Path) -> Iterable[Path]:
    """Yield the photos in a folder and its folders, but not what is hidden."""
    for path in visible(place):
        if path.is_dir():
            yield from photos_below(path)
        elif path.suffix.lower() in PHOTO_SUFFIXES:
            yield path


def visible(place: Path) -> list[Path]:
    """Return what lies in a folder and is not hidden."""
    return [path for path in place.iterdir() if not path.name.startswith(".") and path.name != "__MACOSX"]
