"""What photo files hold: the sha256 of each, and which are copies of one another."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

from racnn.data.sources.catalog import Record
from racnn.errors import DataError
from racnn.written import file_sha256

DIGEST_LENGTH = 16  # hexadecimal digits, 64 bits: enough to know a photo again
WORDS = {"train": "training", "held_out": "held-out", "val": "validation", "test": "test"}


class PhotoFile(NamedTuple):
    """A file as it was: bytes, times of its last change and of its name's in nanoseconds, sha256 of its contents."""

    size: int
    changed: int
    renamed: int
    sha256: str


_READ: dict[Path, PhotoFile] = {}  # what this process knows already


def read_contents(paths: Iterable[Path], known: Mapping[Path, PhotoFile] | None = None) -> list[PhotoFile]:
    """Return the contents of files; one that has the size and times of a known one is taken to be that.

    Raises:
        DataError: A file cannot be read.
    """

    def read(path: Path) -> PhotoFile:
        try:
            found = path.stat()
            times = (found.st_size, found.st_mtime_ns, found.st_ctime_ns)
            before = (
                file for file in ((known or {}).get(path), _READ.get(path)) if file and file[:3] == times
            )
            _READ[path] = next(before, None) or PhotoFile(*times, file_sha256(path))
            return _READ[path]
        except OSError as error:
            raise DataError(f"{path}: cannot be read as a photo: {error.strerror}") from None

    with ThreadPoolExecutor() as pool:
        return list(pool.map(read, paths))


def read_photo_files(
    records: Iterable[Record], known: Mapping[str, PhotoFile] | None = None
) -> dict[str, PhotoFile]:
    """Return by name what photos hold, nothing of drawn ones; ``known`` is what they held before, see :func:`read_contents`.

    Raises:
        DataError: A photo cannot be read.
    """
    paths = {record.name: record.path for record in records if record.path is not None}
    known = known or {}
    before = {path: known[name] for name, path in paths.items() if name in known}
    return dict(zip(paths, read_contents(paths.values(), before), strict=True))


def short_digests(files: Mapping[str, PhotoFile]) -> dict[str, str]:
    """Return by name the start of the sha256 of photos, as a checkpoint keeps it."""
    return {name: file.sha256[:DIGEST_LENGTH] for name, file in files.items()}


class Place(NamedTuple):
    """Where a photo stands."""

    split: str
    record: Record


def find_copies(splits: Mapping[str, Sequence[Record]]) -> list[list[Place]]:
    """Return the groups of photos with the same bytes that lie in more than one split or class.

    Bytes are read only where sizes agree. Photos that cannot be read, and drawn ones, have no copies.
    """
    by_size: dict[int, list[Place]] = defaultdict(list)
    for split, records in splits.items():
        for record in records:
            if record.path is not None and record.path.is_file() and os.access(record.path, os.R_OK):
                by_size[record.path.stat().st_size].append(Place(split, record))
    suspects = [place for places in by_size.values() if len(places) > 1 for place in places]
    paths = [place.record.path for place in suspects if place.record.path is not None]
    by_content: dict[str, list[Place]] = defaultdict(list)
    for place, content in zip(suspects, read_contents(paths), strict=True):
        by_content[content.sha256].append(place)
    return [
        places
        for places in by_content.values()
        if len({split for split, _ in places}) > 1 or len({record.label for _, record in places}) > 1
    ]


def describe_copies(
    copies: Sequence[Sequence[Place]], class_names: Sequence[str], *, most: int | None = None
) -> list[str]:
    """Return what is wrong with copies from :func:`find_copies` in lines; at the ``most`` so many groups are named.

    First how many photos two splits or classes have in common, then which.
    """
    if not copies:
        return []
    shared: Counter[tuple[str, str]] = Counter()
    twice = 0
    for places in copies:
        by_split = Counter(place.split for place in places)
        for first, second in combinations([split for split in WORDS if split in by_split], 2):
            shared[first, second] += by_split[second]
        twice += len({place.record.label for place in places}) > 1
    lines = [
        f"{number} {WORDS[second]} photo{'s are' if number > 1 else ' is'} also among the {WORDS[first]} photos: "
        f"what is measured on {'them' if number > 1 else 'it'} is too good"
        for (first, second), number in shared.items()
    ]
    if twice:
        lines.append(
            f"{twice} photo{'s stand' if twice > 1 else ' stands'} in more than one class: one of the labels is wrong"
        )
    for places in copies[:most]:
        named = [f"{record.name} ({WORDS[split]}, '{class_names[record.label]}')" for split, record in places]
        lines.append(f"  the same photo: {', '.join(named)}")
    if most is not None and len(copies) > most:
        lines.append(f"  and {len(copies) - most} more: racnn data verify PHOTOS lists all")
    return lines
