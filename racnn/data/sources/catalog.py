"""What a data set is: a catalog of its classes and records, and how its photos are shared out.

Each data set is one function from the configuration to a catalog: the names of the classes, and for every photo where
it is, what it shows, and what is annotated. No photo is opened before it is asked for.

Convention:
    Boxes (xyxy) and points (x, y) are in pixels of the upright photo, x right, y down, its outer corners at (0, 0)
    and (w, h). Labels count from 0 in the order of the class ids.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from racnn.data.image_io import read_photo
from racnn.data.names import class_name, matching_classes
from racnn.errors import DataError, did_you_mean
from racnn.sections import DataConfig, parse_ranges

Box = tuple[float, float, float, float]
Part = tuple[float, float, float]

MOST_NAMED = 10  # photos or classes in one message


@dataclass(frozen=True)
class Record:
    """One photo: a name that is unique in the data set, its label, and its annotations as far as they are known.

    Photos of one ``group`` show the same individual, burst or site: they never lie on both sides of a split.
    """

    name: str
    label: int
    path: Path | None = None
    box_xyxy: Box | None = None
    parts: tuple[Part, ...] = ()  # (x, y, visible)
    group: str | None = None


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
    ``passed_over`` counts the files beside the photos that are none, by kind.
    """

    dataset: str
    class_names: list[str]
    train: list[Record]
    val: list[Record] | None
    test: list[Record]
    part_names: list[str] = field(default_factory=list)
    focus_parts: tuple[int, ...] = ()
    load: Callable[[Record], np.ndarray] = read_record
    annotate: Callable[[Record], tuple[Box | None, tuple[Part, ...]]] = recorded_annotations
    passed_over: Counter[str] = field(default_factory=Counter)
    anew: Callable[[Record, int], Record] | None = (
        None  # what a training photo is in an epoch, where that differs
    )

    def splits(self) -> dict[str, list[Record]]:
        """Return the records of the splits that have some, by name: train, val, test."""
        every = {"train": self.train, "val": self.val, "test": self.test}
        return {split: records for split, records in every.items() if records}

    def records(self) -> list[Record]:
        """Return the records of all splits."""
        return [record for records in self.splits().values() for record in records]

    def changed(self, change: Callable[[list[Record]], list[Record]], class_names: Sequence[str]) -> Catalog:
        """Return the data set with other classes, and in every split what ``change`` makes of its records."""
        val = None if self.val is None else change(self.val)
        names = list(class_names)
        return replace(self, class_names=names, train=change(self.train), val=val, test=change(self.test))


def hold_out(
    records: Sequence[Record], *, fraction: float, seed: int, purpose: str
) -> tuple[list[Record], list[Record]]:
    """Take a fraction of every class, chosen by a hash of seed and name.

    So the choice depends neither on the order of the records nor on the other classes, nor on a random generator that
    may change. A class of two photos or more gives at least one and keeps at least one; a single photo stays.
    Photos of a group go together, one without a group alone: in the order of a hash of their names groups are taken that
    no class has less room for below the fraction, then for each class that gives none the smallest it has besides another.
    A class of one group stays.

    Returns:
        What is kept and what is held out, each in the given order.
    """

    def order(key: str) -> bytes:
        # a file's name may be any bytes
        return hashlib.sha256(f"{purpose}:{seed}:{key}".encode(errors="surrogateescape")).digest()

    names = defaultdict(list)
    for record in records:
        names[record.label].append(record.name)
    wanted = {label: min(max(round(len(each) * fraction), 1), len(each) - 1) for label, each in names.items()}
    if any(record.group is not None for record in records):
        held = _held_groups(records, wanted, order)
    else:
        held = {name for label, each in names.items() for name in sorted(each, key=order)[: wanted[label]]}
    return [r for r in records if r.name not in held], [r for r in records if r.name in held]


def _held_groups(
    records: Sequence[Record], wanted: Mapping[int, int], order: Callable[[str], bytes]
) -> set[str]:
    """Return the names of the photos of the groups that are held out; ``wanted`` photos of each class at the most."""
    members = defaultdict(list)
    for record in records:
        # a group and a photo may have the same name
        members[record.name if record.group is None else f"group:{record.group}"].append(record)
    counts = {key: Counter(record.label for record in group) for key, group in members.items()}
    kept = Counter(record.label for record in records)
    held: Counter[int] = Counter()
    chosen: set[str] = set()

    def take(key: str) -> None:
        chosen.add(key)
        held.update(counts[key])
        kept.subtract(counts[key])

    for key in sorted(members, key=order):
        if all(held[label] + number <= wanted[label] for label, number in counts[key].items()):
            take(key)
    for key in sorted(members.keys() - chosen, key=lambda key: (len(members[key]), order(key))):
        needed = any(not held[label] for label in counts[key])
        if needed and all(number < kept[label] for label, number in counts[key].items()):
            take(key)
    return {record.name for key in chosen for record in members[key]}


def in_classes_of(catalog: Catalog, known: Sequence[str]) -> Catalog:
    """Return a data set with the classes that a checkpoint knows, in its order.

    Names that differ only in how they are stored, see :func:`racnn.data.names.class_name`, are the same class.

    Raises:
        DataError: It has other classes: with both numbers and the classes that differ.
    """
    now = [class_name(name) for name in catalog.class_names]
    before = [class_name(name) for name in known]
    if now == before:
        return replace(catalog, class_names=list(known))
    if len(set(now)) < len(now) or sorted(now) != sorted(before):
        new = [f"'{name}' is new" for name in now if name not in before]
        gone = [f"'{name}' is missing" for name in before if name not in now]
        told = ", ".join([*new, *gone][:MOST_NAMED])
        raise DataError(
            f"data: {len(now)} classes here, {len(known)} in the checkpoint: {told}; expected the classes it was trained on"
        )
    return _relabelled(catalog, [before.index(name) for name in now], known)


def only_classes(catalog: Catalog, names: Sequence[str]) -> Catalog:
    """Return a data set with those of its classes that have one of some names."""
    wanted = {class_name(name) for name in names}
    kept = [label for label, name in enumerate(catalog.class_names) if class_name(name) in wanted]
    new = {label: position for position, label in enumerate(kept)}

    def choose(records: list[Record]) -> list[Record]:
        return [replace(record, label=new[record.label]) for record in records if record.label in new]

    return catalog.changed(choose, [catalog.class_names[label] for label in kept])


def in_some_classes_of(catalog: Catalog, known: Sequence[str]) -> Catalog:
    """Return a data set with the classes that a checkpoint knows, of which it may have only some.

    A class is also known by a name that looks alike, see :func:`racnn.data.names.matching_classes`.

    Raises:
        DataError: The checkpoint does not know a class; all such are named.
    """
    labels = matching_classes(catalog.class_names, known)
    pairs = zip(catalog.class_names, labels, strict=True)
    if unknown := [f"'{name}' is new{did_you_mean(name, known)}" for name, label in pairs if label is None]:
        raise DataError(
            f"data: {len(labels)} classes here, {len(known)} in the checkpoint: {_listed(unknown)}; expected classes that it "
            "was trained on: rename the others, or move them away"
        )
    return _relabelled(catalog, [label for label in labels if label is not None], known)


def _relabelled(catalog: Catalog, labels: Sequence[int], class_names: Sequence[str]) -> Catalog:
    """Return a data set whose class i is ``labels[i]`` now; where photos stood class by class they do so again."""

    def change(records: list[Record]) -> list[Record]:
        by_class = all(a.label <= b.label for a, b in pairwise(records))
        changed = [replace(record, label=labels[record.label]) for record in records]
        return sorted(changed, key=lambda record: record.label) if by_class else changed

    return catalog.changed(change, class_names)


def _listed(names: Sequence[str]) -> str:
    """Return the first names in a line, and how many more there are."""
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more


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
    missing = [
        str(record.path) for record in records if record.path is not None and not record.path.is_file()
    ]
    if missing:
        raise DataError(f"{len(missing)} of {len(records)} photos are missing: {_listed(missing)} ({hint})")


def read_exclusions(path: Path) -> set[str]:
    """Return the names of a list of photos to leave out, one a line; '#' alone or before a space begins a comment.

    A name that would not survive on a line stands there as a JSON string, see :func:`exclusion_line`.

    Raises:
        DataError: The file is missing or not text.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig", errors="surrogateescape")
    except OSError as error:
        raise DataError(f"data.exclude: {path}: cannot be read: {error.strerror}") from None
    names = set()
    for number, line in enumerate(text.split("\n"), start=1):
        line = line.strip(" \t\r")
        if "\0" in line:
            raise DataError(f"data.exclude: {path}: cannot be read: not a list of names")
        if line in ("", "#") or line.startswith("# "):
            continue
        if line.startswith('"'):
            try:
                line = json.loads(line)
                assert isinstance(line, str)
            except (ValueError, AssertionError):
                raise DataError(
                    f"data.exclude: {path}, line {number}: expected a name in quotes, found {line}"
                ) from None
        names.add(line)
    return names


def exclusion_line(name: str) -> str:
    """Return the line of a list of photos to leave out that names a photo."""
    odd = any(ord(character) < 32 for character in name) or name != name.strip() or name[:1] in ('"', "#")
    return json.dumps(name) if odd else name


def without(catalog: Catalog, names: Collection[str]) -> Catalog:
    """Return a data set without the photos of these names.

    Raises:
        DataError: It has no photo of such a name.
    """
    known = {record.name for record in catalog.records()}
    if unknown := sorted(set(names) - known):
        raise DataError(
            f"data.exclude: {len(unknown)} names are of no photo of this data set, for example '{unknown[0]}'"
            f"{did_you_mean(unknown[0], known)}"
        )
    return catalog.changed(lambda records: [r for r in records if r.name not in names], catalog.class_names)
