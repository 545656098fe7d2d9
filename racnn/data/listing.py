"""Find the photos in folders: by what they are, each real folder once, and with a word for whatever is passed over.

Convention:
    A photo is a regular file that Pillow reads as a picture of pixels. What is known by its suffix is not opened; any
    other file is looked into. Hidden files, and what file systems and network drives keep for themselves, are passed
    over by name. A folder that is a link is read unless it leads to a folder that is read anyway.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from PIL import Image

from racnn.errors import ConfigError, DataError
from racnn.written import RECORD, is_written, read_record

PHOTO_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".bmp", ".dib", ".webp", ".tif", ".tiff", ".gif"}
    | {".avif", ".jp2", ".j2k", ".jpf", ".jpx", ".j2c"}
    | {".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".psd", ".qoi"}
)
EXPECTED = ", ".join(sorted(PHOTO_SUFFIXES))
HEIF_SUFFIXES = frozenset({".heic", ".heif", ".hif"})
HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")
NEEDS_HEIF = "needs pillow-heif"
# Of these Pillow would show the thumbnail.
RAW_SUFFIXES = frozenset(
    {
        ".cr2",
        ".cr3",
        ".crw",
        ".nef",
        ".nrw",
        ".arw",
        ".srf",
        ".sr2",
        ".dng",
        ".orf",
        ".rw2",
        ".raf",
        ".pef",
        ".srw",
    }
)
RAW = "camera raw, convert it first"
UNFINISHED_SUFFIXES = frozenset({".part", ".partial", ".crdownload", ".download", ".tmp"})
# Formats of Pillow that are no pictures of pixels, run another program, or are only a container.
NO_PHOTO_FORMATS = frozenset(
    {"EPS", "WMF", "MPEG", "BUFR", "GRIB", "HDF5", "FPX", "MIC", "PDF", "MCIDAS", "XVTHUMB", "FLI", "CUR"}
)
# What systems and drives keep for themselves, in small letters; hidden names are passed over anyway.
SYSTEM_NAMES = frozenset(
    {"__macosx", "@eadir", "@recycle", "@recently-snapshot", "@tmp", "@synoresource", "#recycle", "#snapshot"}
    | {"@__thumb", "_gsdata_", "$recycle.bin", "lost+found", "system volume information", "found.000"}
    | {"__pycache__", "network trash folder", "thevolumesettingsfolder", "thumbs.db", "ehthumbs.db"}
    | {"desktop.ini", "icon\r"}
)
MOST_KINDS = 12  # kinds of files in one line
WRITTEN = "written by racnn"
LINKED = "links to folders that are read anyway"


def find_photos(places: Iterable[Path], passed: Counter[str] | None = None) -> list[Path]:
    """Return the photos named, and those inside the folders named, sorted folder by folder.

    ``passed`` counts the files in the folders that are passed over, by kind.

    Raises:
        DataError: A path does not exist, or a folder holds no photos.
    """
    places = list(places)
    check_places(places)
    return list(iter_photos(places, passed))


def check_places(places: Iterable[Path]) -> None:
    """Refuse paths where there is no photo.

    Raises:
        DataError: A path does not exist, or a folder holds no photos.
    """
    for place in places:
        if place.is_dir():
            walk = FolderWalk(place)
            if next(photos_below(place, walk), None) is None:
                others = f"; {describe_passed(walk.passed)}" if walk.passed else ""
                raise DataError(
                    f"{place}: no photos in this folder (expected {EXPECTED} or the like){others}"
                )
        elif not place.is_file():
            raise DataError(f"{place}: no such photo or folder")


def iter_photos(places: Iterable[Path], passed: Counter[str] | None = None) -> Iterator[Path]:
    """Yield what :func:`find_photos` returns, one folder listed at a time."""
    for place in places:
        if place.is_dir():
            yield from photos_below(place, FolderWalk(place, passed))
        else:
            yield place


def photos_below(place: Path, walk: FolderWalk | None = None) -> Iterator[Path]:
    """Yield the photos in a folder and its folders in order; ``walk`` is that through the data set it is a part of."""
    walk = walk or FolderWalk(place)
    passed = walk.passed
    if not walk.enter(place):
        return
    written = _written(place)
    for path in sorted(visible(place, passed)):
        if path.is_dir():
            yield from photos_below(path, walk)
        elif path.name in written:
            passed[WRITTEN] += 1
        elif kind := why_no_photo(path):
            passed[kind] += 1
        else:
            yield path


class FolderWalk:
    """A walk through a folder that reads each real folder once, by its own name where it has one inside.

    Args:
        top: The folder that all of it lies in.
        passed: Counts the files that are passed over, by kind.
    """

    def __init__(self, top: Path, passed: Counter[str] | None = None) -> None:
        self.top = top
        self.passed: Counter[str] = Counter() if passed is None else passed
        self._entered: set[tuple[int, int]] = set()

    @functools.cached_property
    def _real(self) -> set[tuple[int, int]]:
        """The folders that are read anyway, without following a link, and those above them."""
        top = self.top.resolve()
        inside = (
            Path(folder, name)
            for folder, names, _ in os.walk(top)
            for name in names
            if not os.path.islink(os.path.join(folder, name))
        )
        return {_identity(folder) for folder in (*top.parents, top, *inside)}

    def leads_inside(self, path: Path) -> bool:
        """Return whether a path is a link to a folder that is read anyway."""
        return path.is_symlink() and _identity(path) in self._real

    def enter(self, path: Path) -> bool:
        """Return whether a folder is to be read, and remember that it is; count it if not."""
        if path != self.top and (self.leads_inside(path) or _identity(path) in self._entered):
            self.passed[LINKED] += 1
            return False
        self._entered.add(_identity(path))
        return True


def _identity(folder: Path) -> tuple[int, int]:
    found = folder.stat()
    return found.st_dev, found.st_ino


def visible(place: Path, passed: Counter[str] | None = None) -> list[Path]:
    """Return what lies in a folder and is neither hidden nor a system's own.

    Raises:
        DataError: The folder cannot be listed.
    """
    try:
        found = [path for path in place.iterdir() if not path.name.startswith(".")]
    except OSError as error:
        raise DataError(f"{place}: cannot be listed: {error.strerror}") from None
    systems = [path for path in found if path.name.lower() in SYSTEM_NAMES]
    if passed is not None:
        passed.update(path.name for path in systems)
    return [path for path in found if path not in systems]


def _written(folder: Path) -> set[str]:
    """Return the names of files in a folder that this program wrote and nobody has changed since."""
    if not (folder / RECORD).exists():
        return set()
    try:
        record = read_record(folder)
    except ConfigError:  # it is somebody else's
        return set()
    return {name for name in record if (folder / name).is_file() and is_written(folder / name, record)}


def why_no_photo(path: Path) -> str | None:
    """Return None for a photo, by its name or, where that says nothing, its first bytes; else its kind."""
    suffix = path.suffix.lower()
    if suffix in UNFINISHED_SUFFIXES:
        return f"{suffix} (unfinished)"
    if suffix in RAW_SUFFIXES:
        return f"{suffix} ({RAW})"
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return "no regular file"
    except OSError:
        return None if suffix in PHOTO_SUFFIXES else "broken link"  # such a photo is told of when it is read
    if suffix in PHOTO_SUFFIXES:
        return None
    if suffix in HEIF_SUFFIXES:
        return None if reads_heif() else f"{suffix} ({NEEDS_HEIF})"
    return _sniff(path, suffix or "without a suffix")


def _sniff(path: Path, kind: str) -> str | None:
    """Look into a file whose name says nothing."""
    try:
        with path.open("rb") as file:
            start = file.read(32)
        if is_heif(start) and not reads_heif():
            return f"{kind} ({NEEDS_HEIF})"
        tests = (Image.OPEN[name][1] for name in photo_formats())
        if not any(accept(start) is True for accept in tests if accept):  # a text is a reason why not
            return kind
        with Image.open(path, formats=photo_formats()):
            return None
    except Exception:  # decoders raise nearly anything
        return kind


def is_heif(start: bytes) -> bool:
    """Return whether a file that starts like this is a HEIF picture, as phones write them."""
    return start[4:8] == b"ftyp" and start[8:12] in HEIF_BRANDS


@functools.cache
def reads_heif() -> bool:
    """Return whether pillow-heif is installed; it is made known to Pillow then."""
    if importlib.util.find_spec("pillow_heif") is None:
        return False
    import pillow_heif

    pillow_heif.register_heif_opener()
    return True


@functools.cache
def photo_formats() -> tuple[str, ...]:
    """Return Pillow's names of the formats that photos come in, in the order in which Pillow tries them."""
    reads_heif()
    Image.init()
    return tuple(name for name in Image.ID if name not in NO_PHOTO_FORMATS)


def describe_passed(passed: Counter[str]) -> str:
    """Return what was passed over in a line, such as '4 files passed over: 3 .txt, 1 .heic (needs pillow-heif)'."""
    kinds = [f"{number} {kind}" for kind, number in sorted(passed.items())]
    if len(kinds) > MOST_KINDS:
        kinds[MOST_KINDS:] = [f"{len(kinds) - MOST_KINDS} more kinds"]
    total = sum(passed.values())
    return f"{total} file{'' if total == 1 else 's'} passed over: {', '.join(kinds)}"
