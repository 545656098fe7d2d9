"""Tables that describe photos and classes: lines that begin with an id, and CSV files with a row a class."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from racnn.data.names import class_name, matching_classes
from racnn.errors import DataError

MOST_NAMED = 5  # classes in one message


def cub_folder(root: Path, file: str | Path) -> Path:
    """Return CUB-200-2011's folder, the one with a file, where a root is that folder or the one above it."""
    inside = root / "CUB_200_2011"
    return inside if not (root / file).is_file() and (inside / file).is_file() else root


class IdTable:
    """The lines of an annotation file, by the ids they start with.

    Args:
        path: The file.
        columns: What a line holds, for messages.
        kinds: What turns each field into its value; the last one takes the rest of the line.
        num_keys: How many of the first values are the id.

    Raises:
        DataError: It cannot be read, a line is malformed, or an id stands twice.
    """

    def __init__(self, path: Path, columns: str, *kinds: Callable[[str], Any], num_keys: int = 1) -> None:
        self.path, self.columns = path, columns
        self.values: dict[Any, tuple[Any, ...]] = {}
        self._numbers: dict[Any, int] = {}
        for number, line in enumerate(read_lines(path, columns), start=1):
            line, where = line.strip(), f"{path}, line {number}"
            if not line:
                continue
            try:
                fields = line.split(maxsplit=len(kinds) - 1)
                row = tuple(kind(field) for kind, field in zip(kinds, fields, strict=True))
            except (ValueError, KeyError):
                raise DataError(f"{where}: expected '{columns}', found '{line}'") from None
            key = row[0] if num_keys == 1 else row[:num_keys]
            if key in self.values:
                raise DataError(f"{where}: id {key} already stands in line {self._numbers[key]}")
            self.values[key], self._numbers[key] = row[num_keys:], number

    def of(self, key: int, asker: IdTable) -> tuple[Any, ...]:
        """Return the values of an id that another file names."""
        if key not in self.values:
            asker.fail(key, f"id {key} has no line '{self.columns}' in {self.path}")
        return self.values[key]

    def fail(self, key: Any, what: str) -> NoReturn:
        """Raise what is wrong with the line of an id."""
        raise DataError(f"{self.path}, line {self._numbers[key]}: {what}")


def read_lines(path: Path, columns: str) -> list[str]:
    """Return the lines of a text file; ``columns`` says what was expected of them.

    Raises:
        DataError: It cannot be read.
    """
    try:
        content = path.read_bytes()
        if b"\0" in content:
            raise OSError("it holds bytes of zeros")
        return content.decode("utf-8-sig", errors="surrogateescape").split("\n")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; expected lines '{columns}'") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read as text: {error}") from None


class ClassTable:
    """A CSV table with a head: a column of classes and others that say something of them.

    Args:
        text: Its content.
        where: Its file, for messages.
        head: What was expected of it, such as ``a head such as species,genus``.
        gaps: Whether a field of a class may be empty.

    Attributes:
        head: Names of the columns.
        rows: Line and fields of each class.

    Raises:
        DataError: It is no such table.
    """

    def __init__(self, text: str, *, where: str, head: str, gaps: bool = False) -> None:
        self.where = where
        reader, found = csv.reader(io.StringIO(text, newline="")), list[tuple[int, list[str]]]()
        try:
            for row in reader:
                if any(cell.strip() for cell in row):
                    found.append((reader.line_num, [cell.strip() for cell in row]))
        except csv.Error as error:
            raise DataError(f"{where}, line {reader.line_num}: {error}") from None
        if not found or len(found[0][1]) < 2 or not all(found[0][1]):
            raise DataError(f"{where}: expected {head}; commas between them, and a name for each column")
        self.head, self.rows = tuple(found[0][1]), found[1:]
        if len(set(self.head)) < len(self.head):
            raise DataError(f"{where}: two columns have the same name")
        for number, row in self.rows:
            if len(row) != len(self.head) or not (row[0] if gaps else all(row)):
                whole = "" if gaps else " that are not empty"
                raise DataError(f"{where}, line {number}: expected {len(self.head)} fields{whole}")

    def of(self, class_names: Sequence[str]) -> list[tuple[int, list[str]]]:
        """Return line and fields of each of these classes; names that look alike are the same.

        Raises:
            DataError: A class has no row, or more than one.
        """
        places = classes_at(class_names, [row[0] for _, row in self.rows], where=self.where)
        return [self.rows[place] for place in places]


def classes_at(class_names: Sequence[str], known: Sequence[str], *, where: str) -> list[int]:
    """Return the place of each class among known names, see :func:`racnn.data.names.matching_classes`.

    Raises:
        DataError: One is not among them, or more than once.
    """
    places = matching_classes(class_names, [class_name(name) for name in known])
    if missing := [name for name, place in zip(class_names, places, strict=True) if place is None]:
        more = f" and {len(missing) - MOST_NAMED} more" if len(missing) > MOST_NAMED else ""
        others = [name for place, name in enumerate(known) if place not in places]
        spare = f"; rows of other classes: {', '.join(others)}" if 0 < len(others) <= MOST_NAMED else ""
        raise DataError(
            f"{where}: has no row, or more than one, for {', '.join(missing[:MOST_NAMED])}{more}; expected one for every class{spare}"
        )
    return [place for place in places if place is not None]
