"""Photos as they come: of any mode, turned, tiny, damaged or hostile; right pixels or an error that names the file."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from racnn.data.image_io import photo_size, read_photo, read_reduced
from racnn.data.transforms import SourceTransform
from racnn.errors import DataError

Y, X = np.mgrid[0:24, 0:40]
PICTURE = np.stack([X * 6, Y * 10, (X > 20) * (Y > 8) * 200], -1).astype(np.uint8)  # no symmetry
RAMP = np.array([[0, 257, 32768, 65535]], np.uint16)


def encoded(photo, kind="PNG", **options):
    """Return the bytes of a picture file."""
    file = io.BytesIO()
    (photo if isinstance(photo, Image.Image) else Image.fromarray(photo)).save(file, kind, **options)
    return file.getvalue()


def turned(orientation, kind):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 98, "subsampling": 0} if kind == "JPEG" else {}
    return encoded(PICTURE, kind, exif=exif, **options)


def upright(orientation):
    """The eight meanings of the EXIF tag, in numpy."""
    swapped = PICTURE.swapaxes(0, 1) if orientation >= 5 else PICTURE
    flip_rows, flip_columns = orientation in (3, 4, 7, 8), orientation in (2, 3, 6, 7)
    return swapped[:: -1 if flip_rows else 1, :: -1 if flip_columns else 1]


def palette_with_transparency():
    photo = Image.new("P", (2, 1))
    photo.putpalette([10, 20, 30, 40, 50, 60])
    photo.putpixel((1, 0), 1)
    return encoded(photo, transparency=b"\x00\x80")


def translucent():
    alpha = np.full((*PICTURE.shape[:2], 1), 7, np.uint8)
    return encoded(np.concatenate([PICTURE, alpha], axis=2))


def of_mode(mode):
    return encoded(Image.fromarray(PICTURE).convert(mode))


def as_rgb(mode):
    return np.array(Image.fromarray(PICTURE).convert(mode).convert("RGB"))


def png_header(width, height):
    """Return a PNG of few bytes that says it is large."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rest = chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + rest


LARGE_NOISE = np.random.default_rng(0).integers(0, 256, (100, 200, 3), dtype=np.uint8)
READ = {  # name: (content, expected pixels, largest mean difference)
    **{f"png turned {o}": (turned(o, "PNG"), upright(o), 0) for o in range(1, 9)},
    **{f"jpeg turned {o}": (turned(o, "JPEG"), upright(o), 3) for o in range(1, 9)},
    "grey": (of_mode("L"), as_rgb("L"), 0),
    "black and white": (of_mode("1"), as_rgb("1"), 0),
    "grey with alpha": (of_mode("LA"), as_rgb("L"), 0),
    "palette": (of_mode("P"), as_rgb("P"), 0),
    "palette with transparency": (palette_with_transparency(), [[[10, 20, 30], [40, 50, 60]]], 0),
    "rgb with alpha": (translucent(), PICTURE, 0),  # dropped, not blended with black
    "cmyk": (encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG"), [[[255, 0, 0]]], 30),
    "16 bits": (encoded(RAMP), [[[0] * 3, [1] * 3, [128] * 3, [255] * 3]], 0),  # scaled, not clipped
    "1x1": (encoded(PICTURE[:1, :1]), PICTURE[:1, :1], 0),
    "300x1": (encoded(LARGE_NOISE.reshape(-1, 3)[None, :300]), LARGE_NOISE.reshape(-1, 3)[None, :300], 0),
}
REFUSED = {  # name: (content or None for no file, what is said)
    "truncated jpeg": (encoded(LARGE_NOISE, "JPEG")[:4000], "truncated"),
    "truncated png": (encoded(LARGE_NOISE)[:4000], "truncated"),
    "half a header": (encoded(LARGE_NOISE)[:20], "cannot be read as a photo"),
    "junk": (b"this is no photo" * 50, "no picture of a known kind"),
    "0 bytes": (b"", "no picture of a known kind"),
    "a page of html": (b"<!DOCTYPE html><html><body>403</body></html>", "no picture of a known kind"),
    "huge header": (png_header(20000, 20000), "400000000 pixels"),
    "large header": (png_header(10000, 10000), "pixels"),
    "missing": (None, "no such photo"),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", READ)
def test_a_difficult_photo_has_its_right_pixels(name, tmp_path):
    content, expected, tolerance = READ[name]
    path = tmp_path / "photo"
    path.write_bytes(content)
    pixels, expected = read_photo(path), np.asarray(expected)
    assert pixels.dtype == np.uint8
    assert name == "cmyk" or pixels.shape == expected.shape
    assert np.abs(pixels.astype(int) - expected).mean() <= tolerance
    assert photo_size(path) == pixels.shape[:2]


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("name", REFUSED)
def test_a_damaged_photo_is_refused_by_name_with_the_reason(name, tmp_path):
    content, said = REFUSED[name]
    path = tmp_path / "photo.jpg"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=said) as caught:
        read_photo(path)
    assert str(path) in str(caught.value)


def test_a_folder_is_no_photo(tmp_path):
    with pytest.raises(DataError, match=str(tmp_path)):
        read_photo(tmp_path)


# --- large JPEGs, decoded smaller


def scene(height, width):
    """Something like a photo: smooth shapes, edges, fine texture."""
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (height // 40, width // 40, 3), dtype=np.uint8))
    smooth = np.array(small.resize((width, height), Image.Resampling.BICUBIC)).astype(float)
    y, x = np.mgrid[0:height, 0:width]
    edges = 60.0 * (((x // 90 + y // 70) % 2) == 0)[..., None]
    return np.clip(0.6 * smooth + edges + rng.normal(0, 12, (height, width, 1)), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("resize", ["squash", "crop"])
@pytest.mark.parametrize(
    ("shape", "factor"),
    [((1200, 1600), 4), ((1202, 1600), 2), ((1201, 1603), 1), ((2048, 2048), 8), ((2056, 2049), 1)],
)
def test_a_large_jpeg_decoded_smaller_gives_the_same_source(shape, factor, resize, orientation, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(scene(*shape)).save(tmp_path / "a.jpg", exif=exif, quality=90)
    transform = SourceTransform(128, resize)
    whole = read_photo(tmp_path / "a.jpg")
    reduced, size = read_reduced(tmp_path / "a.jpg", transform.resized_shape)
    assert size == whole.shape[:2]
    assert reduced.shape[:2] == (size[0] // factor, size[1] // factor)
    expected, got = transform.shrink(whole, size), transform.shrink(reduced, size)
    assert got.shape == expected.shape
    assert np.abs(got.astype(int) - expected).mean() < 1.0


@pytest.mark.parametrize(("kind", "shape"), [("JPEG", (300, 400)), ("PNG", (1200, 1600))])
def test_small_photos_and_other_kinds_are_decoded_whole(kind, shape, tmp_path):
    (tmp_path / "a").write_bytes(encoded(scene(*shape), kind))
    reduced, size = read_reduced(tmp_path / "a", SourceTransform(128).resized_shape)
    assert np.array_equal(reduced, read_photo(tmp_path / "a"))
    assert size == shape
