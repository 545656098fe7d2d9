"""Find photos in folders and turn them into pixels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from racnn.errors import DataError

ORIENTATION = 0x0112  # the EXIF tag
SPARE = 2  # times the size that is needed, which a photo decoded smaller keeps at least
PHOTO_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"})


def read_photo(path: Path) -> np.ndarray:
    """Return a photo as it is meant to be seen: upright, RGB, transparency dropped, uint8 [h, w, 3].

    Raises:
        DataError: The file is missing, is not a photo, is damaged or cut short, or claims too many pixels.
    """
    return read_reduced(path, None)[0]


def read_reduced(
    path: Path, needed: Callable[[int, int], tuple[int, int]] | None
) -> tuple[np.ndarray, tuple[int, int]]:
    """Return a photo like :func:`read_photo`, a large JPEG decoded smaller, and its own (height, width).

    libjpeg decodes at 1/2, 1/4 or 1/8 of the size for a fraction of the time. What is left is at least ``SPARE`` times
    as large as needed, so that the averaging that follows hides how it was made: the source that comes of it differs by
    less than one grey level on average. A factor that does not divide both sides is not used: libjpeg rounds up, and a
    last column that is only partly there would shift all others.

    Args:
        path: Of the photo.
        needed: From the upright photo's height and width to those it will be resized to; None: do not reduce.

    Raises:
        DataError: As :func:`read_photo`.
    """
    try:
        with Image.open(path) as photo:
            limit = Image.MAX_IMAGE_PIXELS
            if limit and photo.width * photo.height > limit:
                raise DataError(
                    f"expected at most {limit} pixels, the header says {photo.width}x{photo.height}"
                )
            size = _upright_size(photo)
            if needed is not None and photo.format == "JPEG":
                factor = _draft_factor(size, needed(*size))
                photo.draft(None, (photo.width // factor, photo.height // factor))
            ImageOps.exif_transpose(photo, in_place=True)
            return np.array(_to_rgb(photo)), size
    except FileNotFoundError:
        raise DataError(f"{path}: no such photo") from None
    except Exception as error:  # decoders of damaged files raise nearly anything
        raise DataError(f"{path}: cannot be read as a photo: {error or type(error).__name__}") from None


def _draft_factor(size: tuple[int, int], needed: tuple[int, int]) -> int:
    """Return by how much a JPEG of a size may be decoded smaller: 8, 4, 2 or 1."""
    for factor in (8, 4, 2):
        if all(
            has % factor == 0 and has // factor >= SPARE * need
            for has, need in zip(size, needed, strict=True)
        ):
            return factor
    return 1


def photo_size(path: Path) -> tuple[int, int]:
    """Return (height, width) of the upright photo from its header, without decoding it.

    Raises:
        DataError: The header cannot be read.
    """
    try:
        with Image.open(path) as photo:
            return _upright_size(photo)
    except Exception as error:
        raise DataError(f"{path}: cannot be read as a photo: {error or type(error).__name__}") from None


def _upright_size(photo: Image.Image) -> tuple[int, int]:
    turned = photo.getexif().get(ORIENTATION, 1) in (5, 6, 7, 8)
    return (photo.width, photo.height) if turned else (photo.height, photo.width)


def _to_rgb(photo: Image.Image) -> Image.Image:
    if photo.mode.startswith("I"):  # 16 bits, which convert() would clip at 255
        levels = np.asarray(photo).astype(np.float64) / 257
        photo = Image.fromarray(np.clip(np.rint(levels), 0, 255).astype(np.uint8))
    elif photo.mode in ("P", "PA"):  # a palette may hold transparency
        photo = photo.convert("RGBA")
    return photo if photo.mode == "RGB" else photo.convert("RGB")


def find_photos(places: Iterable[Path]) -> list[Path]:
    """Return the photos named, and those inside the folders named, sorted folder by folder.

    Raises:
        DataError: A path does not exist, or a folder holds no photos.
    """
    places = list(places)
    check_places(places)
    return list(iter_photos(places))


def check_places(places: Iterable[Path]) -> None:
    """Refuse paths where there is no photo.

    Raises:
        DataError: A path does not exist, or a folder holds no photos.
    """
    for place in places:
        if place.is_dir():
            if next(iter(photos_below(place)), None) is None:
                raise DataError(
                    f"{place}: no photos in this folder (expected {', '.join(sorted(PHOTO_SUFFIXES))})"
                )
        elif not place.is_file():
            raise DataError(f"{place}: no such photo or folder")


def iter_photos(places: Iterable[Path]) -> Iterator[Path]:
    """Yield what :func:`find_photos` returns, one folder listed at a time."""
    for place in places:
        if place.is_dir():
            yield from photos_below(place)
        else:
            yield place


def photos_below(place: Path) -> Iterator[Path]:
    """Yield the photos in a folder and its folders in order, but not what is hidden."""
    for path in sorted(visible(place)):
        if path.is_dir():
            yield from photos_below(path)
        elif path.suffix.lower() in PHOTO_SUFFIXES:
            yield path


def visible(place: Path) -> list[Path]:
    """Return what lies in a folder and is not hidden."""
    return [path for path in place.iterdir() if not path.name.startswith(".") and path.name != "__MACOSX"]
