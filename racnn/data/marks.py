"""Marks of classes, such as a bird's field marks, and which of them tell one class from another.

They are of classes, not of a photo: nobody looked whether this bird shows them. So they say what to look for.

Two forms are read. CUB-200-2011's own: the folder that has ``classes.txt``, with ``attributes/class_attribute_labels_continuous.txt``, a row
a class with the percentage of people's labels that name each attribute, and ``attributes.txt`` with the attributes' names in that folder, in ``attributes/``, or beside
it, where the archive has it. Or a CSV file with a head, percentages of 0 to 100, an empty field where nothing is known; the head has
a group before a colon, where marks exclude each other:

    species,leg color: pink,leg color: yellow,crested
    Western Gull,44,15,0
"""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from racnn.data.names import class_name, matching_classes
from racnn.errors import DataError

LEAST = 0.15  # by which shares must differ to be told
MOST = 3  # marks in one answer
SHARES = Path("attributes") / "class_attribute_labels_continuous.txt"
NAMES = "attributes.txt"
NUMBER = re.compile(r"^[0-9]+\.")  # of a class, before its name


@dataclass(frozen=True)
class Mark:
    """One that is commoner in one class than in another.

    Attributes:
        name: Such as ``leg color: pink``.
        share: Share of the class's labels that have it, in [0, 1].
        other: The same of the other class.
    """

    name: str
    share: float
    other: float


@dataclass(frozen=True)
class Marks:
    """Of all classes of a network.

    Attributes:
        classes: Names of C classes.
        names: Of A marks, with their group before a colon.
        shares: [C, A] in [0, 1], NaN where nothing is known.
    """

    classes: tuple[str, ...]
    names: tuple[str, ...]
    shares: np.ndarray

    def telling(self, answer: str, other: str) -> list[Mark]:
        """Return what is commoner in the first class than in the second, what differs most first; of each group, and of each word after
        the colon, one."""
        own, its = (self.shares[self.classes.index(name)] for name in (answer, other))
        found: list[Mark] = []
        taken: set[str] = set()
        for place in np.argsort(-np.nan_to_num(own - its, nan=-1.0), kind="stable"):
            name = self.names[place]
            words = {part.strip() for part in name.split(":", 1)}
            if len(found) == MOST or not own[place] - its[place] >= LEAST:
                break
            if not words & taken:
                taken |= words
                found.append(Mark(name, float(own[place]), float(its[place])))
        return found


def beside(marks: Marks, names: Sequence[str]) -> dict[str, Any]:
    """Return in plain types by what the first of some answers is usually told from the second: ``against`` and ``usually``."""
    found = marks.telling(names[0], names[1])
    usually = [
        {"name": mark.name, "share": round(mark.share, 4), "other": round(mark.other, 4)} for mark in found
    ]
    return {"against": names[1], "usually": usually}


def in_words(marks: Sequence[Mark]) -> str:
    """Return marks as they are told: ``leg color: pink (44 % against 12)``."""
    return ", ".join(
        f"{mark.name} ({100 * mark.share:.0f} % against {100 * mark.other:.0f})" for mark in marks
    )


def read_marks(source: Path, class_names: Sequence[str], *, flag: str) -> Marks:
    """Return the marks of classes.

    Args:
        source: A folder in CUB-200-2011's layout, or a CSV file, see above.
        class_names: C names; more classes may be known, and names that look alike are the same, as in
            :func:`racnn.data.names.matching_classes`.
        flag: What named the source, for messages.

    Raises:
        DataError: It cannot be read, or does not know a class.
    """
    source = source.expanduser()
    try:
        known, names, rows = _of_cub(source) if source.is_dir() else _of_table(source)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        file = getattr(error, "filename", None) or source
        raise DataError(
            f"{flag}: {file}: cannot be read: {reason}; expected CUB-200-2011's folder with {SHARES.as_posix()}, or a CSV file"
        ) from None
    except ValueError as error:
        raise DataError(f"{flag}: {error}") from None
    places = matching_classes(class_names, known)
    if missing := [name for name, place in zip(class_names, places, strict=True) if place is None]:
        more = f" and {len(missing) - MOST} more" if len(missing) > MOST else ""
        raise DataError(
            f"{flag}: {source}: has no row, or more than one, for {', '.join(missing[:MOST])}{more}; expected one for every class"
        )
    return Marks(tuple(class_names), tuple(names), rows[[place for place in places if place is not None]])


def _of_cub(root: Path) -> tuple[list[str], list[str], np.ndarray]:
    """Return the classes, the marks' names, and the shares [classes, marks], of CUB-200-2011's folder."""
    file = next(
        (place / NAMES for place in (root, root / "attributes", root.parent) if (place / NAMES).is_file()),
        None,
    )
    if file is None:
        raise ValueError(
            f"{root / NAMES}: no such file, nor in the folder above; it has the attributes' names"
        )
    names = []
    for number, line in enumerate(_lines(file), start=1):
        group, _, value = line.partition(" ")[2].removeprefix("has_").partition("::")
        if not value:
            raise ValueError(
                f"{file}, line {number}: expected a number and a name such as has_leg_color::pink"
            )
        names.append(f"{_readable(group)}: {_readable(value)}")
    rows = []
    for number, line in enumerate(_lines(root / SHARES), start=1):
        rows.append(_shares(line.split(), len(names), f"{root / SHARES}, line {number}"))
    known = []
    for number, line in enumerate(_lines(root / "classes.txt"), start=1):
        own, _, name = line.partition(" ")
        if not own.isdecimal() or not 1 <= int(own) <= len(rows):
            raise ValueError(
                f"{root / 'classes.txt'}, line {number}: expected a class's number, of 1 to {len(rows)}, and its name"
            )
        known.append((int(own) - 1, class_name(NUMBER.sub("", name))))
    return [name for _, name in known], names, np.array([rows[place] for place, _ in known])


def _of_table(file: Path) -> tuple[list[str], list[str], np.ndarray]:
    """Return the same of a CSV file."""
    reader = csv.reader(file.read_text(encoding="utf-8-sig").splitlines())
    try:
        head, *rows = [[cell.strip() for cell in row] for row in reader if any(cell.strip() for cell in row)]
    except (csv.Error, ValueError):
        head, rows = [], []
    if len(head) < 2 or not all(head) or len(set(head)) < len(head) or not rows:
        raise ValueError(f"{file}: expected a head such as species,leg color: pink,crested and a row a class")
    shares = [_shares(row[1:], len(head) - 1, f"{file}, {row[0]}") for row in rows]
    return [class_name(row[0]) for row in rows], head[1:], np.array(shares)


def _shares(cells: Sequence[str], num: int, where: str) -> list[float]:
    """Return percentages as shares, NaN for an empty one."""
    if len(cells) != num:
        raise ValueError(f"{where}: expected {num} percentages, got {len(cells)}")
    try:
        found = [float(cell) / 100.0 if cell else float("nan") for cell in cells]
    except ValueError:
        raise ValueError(f"{where}: expected percentages of 0 to 100") from None
    if not all(np.isnan(share) or 0.0 <= share <= 1.0 for share in found):
        raise ValueError(f"{where}: expected percentages of 0 to 100")
    return found


def _lines(file: Path) -> list[str]:
    return [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]


def _readable(name: str) -> str:
    return " ".join(name.replace("_", " ").split())
