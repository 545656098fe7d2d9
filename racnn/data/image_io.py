"""Turn a photo into pixels: upright, RGB, 8 bits, whatever it is stored as; or say why that cannot be done."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from racnn.data.listing import NEEDS_HEIF, RAW, RAW_SUFFIXES, is_heif, photo_formats
from racnn.errors import DataError

ORIENTATION = 0x0112  # tags
BITS_PER_SAMPLE, PHOTOMETRIC, COLOUR_MAP, SAMPLE_FORMAT = 258, 262, 320, 339
DEEP_FORMATS = ("PNG", "PPM", "SGI")  # that may have 16 bits a channel, of which Pillow keeps 8
WHITE_IS_ZERO, SIGNED = 0, 2
TAGS = {"exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp"}  # where Pillow keeps them of a PNG
TURN = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SWAPPING = (5, 6, 7, 8)  # orientations that exchange height and width
SPARE = 2  # times the size that is needed, which a photo decoded smaller keeps at least
# Largest value from which 16 bits are taken to be used in full. Cameras and scanners store 10, 12 or 14 bits in 16
# without saying so; such a picture would be seen all but black.
LEAST_PEAK = 1 << 14


def read_photo(path: Path) -> np.ndarray:
    """Return a photo as it is meant to be seen: upright, RGB, transparency dropped, uint8 [h, w, 3].

    Raises:
        DataError: The file is missing, is not a photo, is damaged or cut short, claims too many pixels, or holds numbers
            whose range is not known.
    """
    return read_reduced(path, None)[0]


def read_reduced(
    path: Path | bytes,
    needed: Callable[[int, int], tuple[int, int]] | None,
    *,
    most_pixels: int | None = None,
) -> tuple[np.ndarray, tuple[int, int]]:
    """Return a photo like :func:`read_photo`, a large JPEG decoded smaller, and its own (height, width).

    libjpeg decodes at 1/2, 1/4 or 1/8 of the size for a fraction of the time. What is left is at least ``SPARE`` times
    as large as needed, so that the averaging that follows hides how it was made: the source that comes of it differs by
    less than one grey level on average. A factor that does not divide both sides is not used: libjpeg rounds up, and a
    last column that is only partly there would shift all others.

    Args:
        path: The photo: its file, or the content of one.
        needed: From the upright photo's height and width to those it will be resized to; None: do not reduce.
        most_pixels: Refuse by the header photos of more; None: Pillow's limit.

    Raises:
        DataError: As :func:`read_photo`.
    """
    with _opened(path) as photo:
        limit = most_pixels or Image.MAX_IMAGE_PIXELS
        if limit and photo.width * photo.height > limit:
            raise DataError(f"expected at most {limit} pixels, the header says {photo.width}x{photo.height}")
        numbers = _numbers(photo)  # Pillow forgets them when it decodes
        turn = _orientation(photo, path)
        size = _upright_size(photo, turn)
        if needed is not None and photo.format == "JPEG":
            factor = _draft_factor(size, needed(*size))
            photo.draft(None, (photo.width // factor, photo.height // factor))
        photo.load()
        turned = photo.format != "TIFF" and turn in TURN  # Pillow turns a TIFF while it decodes it
        return np.array(_to_rgb(photo.transpose(TURN[turn]) if turned else photo, numbers)), size


def as_rgb(photo: Image.Image) -> np.ndarray:
    """Return an open picture like :func:`read_photo`: upright, RGB, uint8 [h, w, 3].

    Raises:
        DataError: It cannot be read, or holds numbers whose range is not known.
    """
    try:
        numbers = _numbers(photo)
        return np.array(_to_rgb(ImageOps.exif_transpose(photo), numbers))
    except Exception as error:
        raise DataError(f"cannot be read as a photo: {error or type(error).__name__}") from None


def photo_size(path: Path) -> tuple[int, int]:
    """Return (height, width) of the upright photo from its header, without decoding it.

    Raises:
        DataError: The header cannot be read.
    """
    with _opened(path) as photo:
        return _upright_size(photo, _orientation(photo, path))


def _file_of(source: Path | bytes) -> BinaryIO:
    return io.BytesIO(source) if isinstance(source, bytes) else source.open("rb")


@contextmanager
def _opened(path: Path | bytes) -> Iterator[Image.Image]:
    """Open a photo, and say what went wrong while it was open.

    From its open file: a TIFF that Pillow maps by its name would come out scrambled if it is turned.
    """
    name = "the photo" if isinstance(path, bytes) else path
    try:
        with _file_of(path) as file:
            if isinstance(path, Path) and path.suffix.lower() in RAW_SUFFIXES:
                raise DataError(RAW)
            with Image.open(file, formats=photo_formats()) as photo:
                yield photo
    except FileNotFoundError:
        raise DataError(f"{name}: no such photo") from None
    except Exception as error:  # decoders of damaged files raise nearly anything
        reason = str(error) or type(error).__name__
        if isinstance(error, UnidentifiedImageError):
            with _file_of(path) as file:
                if is_heif(file.read(32)):
                    reason = f"a HEIF picture {NEEDS_HEIF}: pip install pillow-heif"
        # Pillow calls it by its place in memory
        reason = reason.replace("cannot identify image file", "no picture of a known kind").partition(
            " <_io"
        )[0]
        raise DataError(f"{name}: cannot be read as a photo: {reason}") from None


def _draft_factor(size: tuple[int, int], needed: tuple[int, int]) -> int:
    """Return by how much a JPEG of a size may be decoded smaller: 8, 4, 2 or 1."""
    for factor in (8, 4, 2):
        left = [has / factor for has in size]
        if all(has.is_integer() and has >= SPARE * need for has, need in zip(left, needed, strict=True)):
            return factor
    return 1


def _tags_behind_pixels(path: Path | bytes) -> bool:
    """Return whether a PNG has text or tags after its pixels, or is cut short."""
    with _file_of(path) as file:
        end = file.seek(0, 2)
        place, pixels = 8, False
        while place + 12 <= end:
            file.seek(place)
            length, kind = struct.unpack(">I4s", file.read(8))
            if kind == b"IEND":
                return False
            if pixels and kind in (b"eXIf", b"tEXt", b"zTXt", b"iTXt"):
                return True
            pixels |= kind == b"IDAT"
            place += 12 + length
    return True


def _orientation(photo: Image.Image, path: Path | bytes) -> int:
    """Return how a picture of the size that Pillow gives has to be turned, an EXIF orientation from 1 to 8.

    Of the tags only this one is needed: what else is wrong with them does no harm. Of a TIFF with this tag Pillow gives
    the upright size at once; not of one whose orientation stands in its XMP block alone.
    """
    if photo.format == "TIFF" and ORIENTATION in getattr(photo, "tag_v2", ()):
        return 1
    if photo.format == "PNG":
        if not (TAGS & photo.info.keys()) and not _tags_behind_pixels(path):
            return 1  # or Pillow would decode it to look for some
        photo.load()
    try:
        value = photo.getexif().get(ORIENTATION, 1)
        number = int(value[0] if isinstance(value, tuple) else value)
    except Exception:  # Pillow raises nearly anything
        return 1
    return number if 1 <= number <= 8 else 1


def _upright_size(photo: Image.Image, turn: int) -> tuple[int, int]:
    return (photo.width, photo.height) if turn in SWAPPING else (photo.height, photo.width)


class _Numbers(NamedTuple):
    """How a photo's samples are stored."""

    bits: int
    white_is_zero: bool = False
    signed: bool = False  # negative numbers may occur
    low_palette: bool = False  # the colours of a palette have 8 bits where the format has 16


def _numbers(photo: Image.Image) -> _Numbers:
    if photo.format == "TIFF":
        tags = photo.tag_v2  # type: ignore[attr-defined]
        return _Numbers(
            max(tags.get(BITS_PER_SAMPLE, (1,))),
            white_is_zero=tags.get(PHOTOMETRIC) == WHITE_IS_ZERO,
            signed=SIGNED in tags.get(SAMPLE_FORMAT, (1,)),
            low_palette=0 < max(tags.get(COLOUR_MAP, (0,))) < 256,
        )
    tiles = getattr(photo, "tile", ()) if photo.format in DEEP_FORMATS else ()
    marks = (f"{tile[0]} {tile[3]}" for tile in tiles)
    deep = any(sign in mark for mark in marks for sign in (";16", "SGI16", "65535"))
    return _Numbers(16 if deep or photo.mode.startswith("I") else 8)


def _to_rgb(photo: Image.Image, numbers: _Numbers) -> Image.Image:
    """Return a decoded photo in RGB.

    Raises:
        DataError: It holds numbers whose range is not known.
    """
    if photo.mode == "F":
        raise DataError("mode F, floating point numbers, whose range is not known; save it with 8 or 16 bits")
    # Pillow scales the PPM family to 16 bits
    if numbers.signed or (photo.mode == "I" and photo.format != "PPM"):
        raise DataError(
            f"mode {photo.mode}, {numbers.bits}-bit whole numbers, whose range is not known; save it with 8 or 16 bits"
        )
    if numbers.low_palette:
        raise DataError(f"mode {photo.mode}, a palette of 8 bits where TIFF has 16; save it in RGB")
    if photo.mode.startswith("I"):  # which convert() would clip at 255
        photo = _grey_of(photo, numbers)
    elif numbers.bits == 16:  # Pillow has kept the upper 8 bits of each
        colours = [band for band, name in enumerate(photo.getbands()) if name not in ("A", "X")]
        _refuse_low(max(int(np.asarray(photo.getchannel(band)).max()) << 8 for band in colours), photo.mode)
    elif photo.mode in ("P", "PA"):  # a palette may hold transparency
        photo = photo.convert("RGBA")
    return photo if photo.mode == "RGB" else photo.convert("RGB")


def _grey_of(photo: Image.Image, numbers: _Numbers) -> Image.Image:
    """Return a grey photo of up to 16 bits with 8."""
    values = np.asarray(photo).astype(np.float64)
    if numbers.bits == 16:
        _refuse_low(int(values.max()), photo.mode)
    largest = float((1 << numbers.bits) - 1)
    levels = np.clip(np.rint(values * (255.0 / largest)), 0, 255).astype(np.uint8)
    return Image.fromarray(255 - levels if numbers.white_is_zero else levels)


def _refuse_low(peak: int, mode: str) -> None:
    """Refuse a photo that uses so little of 16 bits that its numbers must have fewer."""
    if 0 < peak < LEAST_PEAK:
        raise DataError(
            f"mode {mode}, 16-bit numbers none of which is above {peak | 255}: these are fewer bits in 16, whose range is not "
            "known; scale them to 16 bits, or save it with 8"
        )
