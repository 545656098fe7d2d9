"""What a data set is: a catalog of its classes and records, and how its photos are shared out.

Each data set is one function from the configuration to a catalog: the names of the classes, and for every photo where
it is, what it shows, and what is annotated. No photo is opened before it is asked for.

Convention:
    Boxes (xyxy) and points (x, y) are in pixels of the upright photo, x right, y down, its outer corners at (0, 0)
    and (w, h). Labels count from 0 in the order of the class ids.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from racnn.config import DataConfig, parse_ranges
from racnn.data.photos import read_photo
from racnn.errors import DataError, did_you_mean

Box = tuple[float, float, float, float]
Part = tuple[float, float, float]

MOST_NAMED = 10  # missing photos in one message


@dataclass(frozen=True)
class Record:
    """One photo: a name that is unique in the data set, its label, and its annotations as far as they are known."""

    name: str
    label: int
    path: Path | None = None
    box_xyxy: Box | None = None
    parts: tuple[Part, ...] = ()  # (x, y, visible)


def read_record(record: Record) -> np.ndarray:
    """Return the photo of a record that has a path, uint8 [h, w, 3]."""
    assert record.path is not None
    return read_photo(record.path)


def recorded_annotations(record: Record) -> tuple[Box | None, tuple[Part, ...]]:
    """Return the box and parts that stand in the record."""
    return record.box_xyxy, record.parts


@dataclass(frozen=True)
class Catalog:
    """A data set: its classes, its annotated parts, its splits, and how a record is turned into pixels.

    ``focus_parts`` are the positions of the parts whose mean is the telling part. ``val`` is None where the data set
    brings no validation photos. ``annotate`` exists because drawn birds learn their boxes only when they are drawn.
    """

    dataset: str
    class_names: list[str]
    train: list[Record]
    val: list[Record] | None
    test: list[Record]
    part_names: list[str]
    focus_parts: tuple[int, ...]
    load: Callable[[Record], np.ndarray] = read_record
    annotate: Callable[[Record], tuple[Box | None, tuple[Part, ...]]] = recorded_annotations


def hold_out(
    records: Sequence[Record], *, fraction: float, seed: int, purpose: str
) -> tuple[list[Record], list[Record]]:
    """Take a fraction of every class, chosen by a hash of seed and name.

    So the choice depends neither on the order of the records nor on the other classes, nor on a random generator that
    may change. A class of two photos or more gives at least one and keeps at least one; a single photo stays.

    Returns:
        What is kept and what is held out, each in the given order.
    """
    classes = defaultdict(list)
    for record in records:
        classes[record.label].append(record.name)
    held: set[str] = set()
    for names in classes.values():
        names.sort(key=lambda name: hashlib.sha256(f"{purpose}:{seed}:{name}".encode()).digest())
        held.update(names[: min(max(round(len(names) * fraction), 1), len(names) - 1)])
    return [r for r in records if r.name not in held], [r for r in records if r.name in held]


def refuse_other_classes(now: Sequence[str], known: Sequence[str]) -> None:
    """Refuse a data set that has other classes than a checkpoint knows.

    Raises:
        DataError: With both numbers and the classes that differ, or the first that stands elsewhere.
    """
    if list(now) != list(known):
        pairs = enumerate(zip(now, known, strict=False), start=1)
        other = next(
            (f"class {i} is '{is_now}', was '{was}'" for i, (is_now, was) in pairs if is_now != was), ""
        )
        new = [f"'{name}' is new" for name in now if name not in known]
        gone = [f"'{name}' is missing" for name in known if name not in now]
        told = ", ".join([*new, *gone][:MOST_NAMED]) or other
        raise DataError(
            f"data: {len(now)} classes here, {len(known)} in the checkpoint: {told}; expected the classes it was trained on, "
            "in their order"
        )


def existing_root(config: DataConfig, expected: str) -> Path:
    if config.root is None:
        raise DataError(f"data.root: not set; expected {expected}")
    root = config.root.expanduser()
    if not root.is_dir():
        raise DataError(f"data.root: {root} is not a folder; expected {expected}")
    return root


def chosen_classes(config: DataConfig, known: Collection[int], where: object) -> list[int]:
    """Return the ids that ``config.classes`` names, or all, in order."""
    if config.classes is None:
        return sorted(known)
    wanted = parse_ranges(config.classes)
    unknown = [class_id for class_id in wanted if class_id not in known]
    if unknown:
        raise DataError(
            f"data.classes: '{config.classes}' names class {unknown[0]}, of which there are no photos in {where}; "
            f"expected {len(known)} ids from {min(known)} to {max(known)}"
        )
    return wanted


def check_photos_exist(records: Sequence[Record], hint: str) -> None:
    """Refuse a data set whose lists name photos that are not there.

    Raises:
        DataError: With how many are missing and the first of them.
    """
    missing = [record.path for record in records if record.path is not None and not record.path.is_file()]
    if missing:
        first = ", ".join(str(path) for path in missing[:MOST_NAMED])
        more = f" and {len(missing) - MOST_NAMED} more" if len(missing) > MOST_NAMED else ""
        raise DataError(f"{len(missing)} of {len(records)} photos are missing: {first}{more} ({hint})")


def read_exclusions(path: Path) -> set[str]:
    """Return the names of a list of photos to leave out: one a line; '#' alone or before a space begins a comment.

    Raises:
        DataError: The file is missing or not text.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"data.exclude: {path}: cannot be read: {error}") from None
    return {line.strip() for line in lines if line.strip() not in ("", "#") and not line.startswith("# ")}


def without(catalog: Catalog, names: Collection[str]) -> Catalog:
    """Return a data set without the photos of these names.

    Raises:
        DataError: It has no photo of such a name.
    """
    kept = {
        split: None if records is None else [record for record in records if record.name not in names]
        for split, records in (("train", catalog.train), ("val", catalog.val), ("test", catalog.test))
    }
    known = {record.name for record in (*catalog.train, *(catalog.val or []), *catalog.test)}
    if unknown := sorted(set(names) - known):
        raise DataError(
            f"data.exclude: {len(unknown)} names are of no photo of this data set, for example '{unknown[0]}'"
            f"{did_you_mean(unknown[0], known)}"
        )
    return replace(catalog, **kept)  # type: ignore[arg-type]
