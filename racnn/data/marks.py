"""Marks of classes, such as a bird's field marks, and which of them tell one class from another.

They are of classes, not of a photo: nobody looked whether this bird shows them. So they say what to look for.

Two forms are read. CUB-200-2011's own: the folder with ``classes.txt`` and ``attributes/class_attribute_labels_continuous.txt``, a row
a class with the percentage of people's labels that name each attribute; ``attributes.txt``, their names, lies in that folder, in ``attributes/``, or,
as the archive has it, beside that folder. Or a CSV file with a head and a row a class, in percent, with an empty field where nothing
is known; before a colon stands a group, whose marks exclude each other:

    species,leg color: pink,leg color: yellow,crested
    Western Gull,44,15,0
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from racnn.data.names import without_number
from racnn.data.tables import ClassTable, IdTable, classes_at, cub_folder, read_lines
from racnn.errors import DataError

LEAST = 0.15  # by which shares must differ to be told
MOST = 3  # marks that are told
# Parts without plumage: their color says something that the color of the plumage, which is named for many parts, does not.
BARE = ("beak", "bill", "eye", "leg")
SHARES = Path("attributes") / "class_attribute_labels_continuous.txt"
NAMES = "attributes.txt"
PERCENT = re.compile(r"[0-9]+(\.[0-9]*)?")
NONE_TELLS = "no known mark tells them apart"


@dataclass(frozen=True)
class Mark:
    """One that is commoner, or rarer, in one class than in another.

    Attributes:
        name: Such as ``leg color: pink``.
        share: How common it is in the class, in [0, 1]; of CUB-200-2011 the share of people's labels that name it.
        other: How common it is in the other class.
    """

    name: str
    share: float
    other: float


@dataclass(frozen=True)
class Marks:
    """The marks of all classes of a network.

    Attributes:
        classes: Names of C classes.
        names: Names of A marks, with their group before a colon.
        shares: [C, A] in [0, 1], NaN where nothing is known.
    """

    classes: tuple[str, ...]
    names: tuple[str, ...]
    shares: np.ndarray

    def telling(self, answer: str, other: str) -> list[Mark]:
        """Return the marks by which one class differs most from another, by :data:`LEAST` each, at most :data:`MOST`.

        First come those that are commoner in it, and where these are fewer, those that are rarer. Of a group only one is told, and a word
        after the colon, such as ``red``, only once for all groups but those of bare parts: a bird that is red is so in many places.
        """
        own, its = (self.shares[self.classes.index(name)] for name in (answer, other))
        differences = np.nan_to_num((own - its).round(6))
        commoner = [place for place in np.argsort(-differences, kind="stable") if differences[place] >= LEAST]
        rarer = [place for place in np.argsort(differences, kind="stable") if differences[place] <= -LEAST]
        found: list[Mark] = []
        taken: set[str] = set()
        for place in commoner + rarer:
            if len(found) == MOST:
                break
            group, _, value = (part.strip() for part in self.names[place].partition(":"))
            words = {group} if group.split(" ")[0] in BARE else {group, value}
            if not words & taken:
                taken |= words - {""}
                found.append(Mark(self.names[place], float(own[place]), float(its[place])))
        return found


def in_words(marks: Sequence[Mark]) -> str:
    """Return marks as they are told: ``leg color: pink (44 % against 12), less often crested (0 % against 90)``; '' if there are none."""
    return ", ".join(
        f"{'less often ' * (mark.share < mark.other)}{mark.name} ({100 * mark.share:.0f} % against {100 * mark.other:.0f})"
        for mark in marks
    )


def in_plain_types(marks: Sequence[Mark], against: str) -> dict[str, Any]:
    """Return marks as JSON has them: ``against``, the other class, and ``usually``, of each ``name``, ``share`` and ``other``."""
    usually = [
        {"name": mark.name, "share": round(mark.share, 4), "other": round(mark.other, 4)} for mark in marks
    ]
    return {"against": against, "usually": usually}


def read_marks(source: Path, class_names: Sequence[str], *, flag: str) -> Marks:
    """Return the marks of classes.

    Args:
        source: A folder in CUB-200-2011's layout, or the one above it, or a CSV file, see above.
        class_names: C names; more classes may be known, and names that look alike are the same, as in
            :func:`racnn.data.names.matching_classes`.
        flag: What named the source, for messages.

    Raises:
        DataError: It cannot be read, or does not know a class.
    """
    try:
        source = source.expanduser()
        return _of_cub(source, class_names) if source.is_dir() else _of_table(source, class_names)
    except DataError as error:
        raise DataError(f"{flag}: {error}") from None
    except (OSError, UnicodeDecodeError, RuntimeError) as error:  # RuntimeError: no such user after ~
        reason = getattr(error, "strerror", None) or error
        raise DataError(
            f"{flag}: {source}: cannot be read: {reason}; expected CUB-200-2011's folder, or a CSV file of classes and their marks"
        ) from None


def _of_cub(root: Path, class_names: Sequence[str]) -> Marks:
    root = cub_folder(root, SHARES)
    if not (root / SHARES).is_file():
        raise DataError(
            f"{root / SHARES}: no such file; expected CUB-200-2011's folder, or a CSV file of classes and their marks"
        )
    places = (root, root / "attributes", root.resolve().parent)
    file = next((place / NAMES for place in places if (place / NAMES).is_file()), None)
    if file is None:
        raise DataError(
            f"{root}: expected {NAMES}, the names of the attributes, there, in attributes/, or in the folder above"
        )
    named = IdTable(file, "<attribute id> <name such as has_leg_color::pink>", int, _mark_name)
    names = [name for (name,) in named.values.values()]
    classes = IdTable(root / "classes.txt", "<class id> <name>", int, str)
    lines = [line for line in read_lines(root / SHARES, "percentages") if line.strip()]
    for class_id in classes.values:
        if not 1 <= class_id <= len(lines):
            classes.fail(class_id, f"{root / SHARES} has no such line")
    ids = list(classes.values)
    known = [without_number(name) for (name,) in classes.values.values()]
    chosen = [ids[place] for place in classes_at(class_names, known, where=str(root / "classes.txt"))]
    rows = [_shares(lines[own - 1].split(), names, f"{root / SHARES}, line {own}") for own in chosen]
    return Marks(tuple(class_names), tuple(names), np.array(rows))


def _of_table(file: Path, class_names: Sequence[str]) -> Marks:
    head = "a head such as species,leg color: pink,crested: a column of classes, and of their marks"
    table = ClassTable(file.read_text(encoding="utf-8-sig"), where=str(file), head=head, gaps=True)
    names = table.head[1:]
    rows = np.array(
        [_shares(row[1:], names, f"{file}, line {number}") for number, row in table.of(class_names)]
    )
    if not (np.nan_to_num(rows) > 0.01).any():
        raise DataError(f"{file}: expected percentages of 0 to 100, and none is above 1")
    return Marks(tuple(class_names), tuple(names), rows)


def _mark_name(text: str) -> str:
    """Return an attribute's name as it is told: ``leg color: pink``.

    Raises:
        ValueError: It is none.
    """
    group, _, value = text.removeprefix("has_").partition("::")
    if not group or not value:
        raise ValueError
    return ": ".join(" ".join(part.replace("_", " ").split()) for part in (group, value))


def _shares(cells: Sequence[str], names: Sequence[str], where: str) -> list[float]:
    """Return percentages as shares, NaN for an empty one."""
    if len(cells) != len(names):
        raise DataError(f"{where}: expected {len(names)} percentages, found {len(cells)}")
    for cell, name in zip(cells, names, strict=True):
        if cell and not (PERCENT.fullmatch(cell) and float(cell) <= 100.0):
            raise DataError(f"{where}: {name}: expected a percentage of 0 to 100, found '{cell}'")
    return [float(cell) / 100.0 if cell else float("nan") for cell in cells]
