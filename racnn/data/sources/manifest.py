"""A list of photos: a CSV or JSON Lines file with path, label, and optionally split, group and box."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from racnn.data.names import class_name, natural_key, split_of
from racnn.data.sources.catalog import Box, Catalog, Record, check_photos_exist, chosen_classes, hold_out
from racnn.data.sources.folder import TEST_FRACTION
from racnn.data.statistics import box_problem
from racnn.errors import DataError, did_you_mean
from racnn.sections import DataConfig

CORNERS = ("x0", "y0", "x1", "y1")
COLUMNS = ("path", "label", "split", "group", *CORNERS)  # of a CSV file
KEYS = ("path", "label", "split", "group", "box")  # of a JSON line
EXPECTED = "a .csv file with the columns path, label (and split, group, x0, y0, x1, y1) or a .jsonl file with such keys"
SPLITS = ("train", "val", "test")


def manifest(config: DataConfig) -> Catalog:
    """Read the list of photos that ``config.root`` names; paths in it are relative to it.

    Boxes are in pixels of the upright photo and lie in it; the header of each photo that has one is read. Without a split
    every row is a training photo; without test rows 20 % of every class are held out for testing, by
    ``config.split_seed``. Rows of one ``group`` (one individual, burst or site) never lie on both sides of a split. Labels
    are brought into a normal form and stand in natural order; ``config.classes`` counts them from 1.

    Raises:
        DataError: The file is missing or malformed (the line is named), photos are missing, or a group has two splits.
    """
    labels, rows, path = _read(config)
    chosen = [labels[i - 1] for i in chosen_classes(config, range(1, len(labels) + 1), path)]
    wanted = set(chosen)
    splits = _records([row for row in rows if row.label in wanted], chosen, path)
    if not splits["test"]:
        splits["train"], splits["test"] = hold_out(
            splits["train"], fraction=TEST_FRACTION, seed=config.split_seed, purpose="test"
        )
    return Catalog("manifest", chosen, splits["train"], splits["val"] or None, splits["test"])


def manifest_to_measure(config: DataConfig) -> Catalog:
    """Read the same list for photos to measure on: nothing is held out, and rows without a split are all test photos."""
    labels, rows, path = _read(config)
    if not any(row.split_given for row in rows):
        rows = [row._replace(split="test") for row in rows]
    splits = _records(rows, labels, path)
    return Catalog("manifest", labels, splits["train"], splits["val"] or None, splits["test"])


def list_names(path: Path) -> list[str]:
    """Return the paths of the photos that a list names, as they stand there.

    Raises:
        DataError: As :func:`manifest`.
    """
    return [row.name for row in _read(DataConfig(dataset="manifest", root=path))[1]]


class _Row(NamedTuple):
    """A line of a list."""

    line: int
    name: str
    label: str
    split: str
    split_given: bool
    box: Box | None
    group: str | None


def _read(config: DataConfig) -> tuple[list[str], list[_Row], Path]:
    """Return the labels in order, the rows and the file."""
    if config.root is None or not config.root.expanduser().is_file():
        raise DataError(f"data.root: {config.root} is not a file; expected {EXPECTED}")
    path = config.root.expanduser()
    rows = [_parse(values, path, number) for number, values in _read_rows(path)]
    if not rows:
        raise DataError(f"{path}: holds no rows; expected {EXPECTED}")
    _refuse_contradictions(rows, path)
    return sorted({row.label for row in rows}, key=natural_key), rows, path


def _records(rows: Sequence[_Row], labels: Sequence[str], path: Path) -> dict[str, list[Record]]:
    """Return the records of each split, whose photos are there and hold their boxes."""
    splits: dict[str, list[Record]] = {"train": [], "val": [], "test": []}
    label_of = {label: position for position, label in enumerate(labels)}
    for row in rows:
        record = Record(row.name, label_of[row.label], path.parent / row.name, row.box, group=row.group)
        splits[row.split].append(record)
    check_photos_exist([record for records in splits.values() for record in records], f"listed in {path}")
    for row in rows:
        photo = path.parent / row.name
        if problem := row.box and box_problem(row.box, photo):
            raise DataError(f"{path}, line {row.line}: box: {problem[0]}: {photo}")
    return splits


def _read_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the number of each line and its values, the box under 'box'."""
    read = {".csv": _read_csv, ".jsonl": _read_jsonl}.get(path.suffix.lower())
    if read is None:
        raise DataError(f"{path}: expected {EXPECTED}")
    try:
        content = path.read_bytes()
        if content.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in content:
            raise DataError(
                f"{path}: cannot be read as text: expected UTF-8, not UTF-16 or another kind of file"
            )
        # the names of files may be any bytes
        yield from read(path, content.decode("utf-8-sig", errors="surrogateescape"))
    except (OSError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as text: {error}") from None


def _read_csv(path: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    where = f"{path}, line 1"
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    names = reader.fieldnames or ()
    _refuse_unknown(names, COLUMNS, where)
    _refuse_twice(names, where)
    corners = [name for name in CORNERS if name in names]
    if corners and len(corners) < len(CORNERS):
        raise DataError(f"{where}: expected all of {', '.join(CORNERS)} or none, found {', '.join(corners)}")
    for values in reader:
        if None in values or None in values.values():
            raise DataError(f"{path}, line {reader.line_num}: expected {len(names)} fields")
        box = [values.pop(name) for name in corners]
        yield reader.line_num, values | {"box": box if any(box) else None}


def _read_jsonl(path: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            values = json.loads(line, object_pairs_hook=partial(_object, where))
        except DataError:
            raise
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where}: not valid JSON: {error}") from None
        if not isinstance(values, dict):
            raise DataError(f"{where}: expected an object with the keys {', '.join(KEYS)}")
        _refuse_unknown(values, KEYS, where)
        yield number, values


def _object(where: str, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    _refuse_twice([key for key, _ in pairs], where)
    return dict(pairs)


def _refuse_twice(names: Sequence[str], where: str) -> None:
    for name in names:
        if names.count(name) > 1:
            raise DataError(f"{where}: '{name}' stands twice; expected it once")


def _refuse_unknown(found: Any, known: tuple[str, ...], where: str) -> None:
    for name in found:
        if name not in known:
            raise DataError(
                f"{where}: unknown column '{name}'{did_you_mean(str(name), known)}; expected {', '.join(known)}"
            )
    for name in ("path", "label"):
        if name not in found:
            raise DataError(f"{where}: '{name}' is missing; expected {', '.join(known)}")


def _parse(values: dict[str, Any], path: Path, number: int) -> _Row:
    where = f"{path}, line {number}"
    name, split = values["path"], values.get("split") or ""
    if not isinstance(name, str) or not name.strip():
        raise DataError(f"{where}: path: expected the path of a photo, found {name!r}")
    if not isinstance(split, str) or (split.strip() and split_of(split) is None):
        raise DataError(
            f"{where}: split: expected train, val or test, found {split!r}{did_you_mean(str(split), SPLITS)}"
        )
    label = _parse_word(values["label"], f"{where}: label: expected the name of a class")
    box = _parse_box(values.get("box"), where)
    group = values.get("group")
    if group not in (None, ""):
        group = _parse_word(group, f"{where}: group: expected the name of a group")
    return _Row(
        number, name.strip(), label, split_of(split) or "train", bool(split.strip()), box, group or None
    )


def _parse_word(value: Any, expected: str) -> str:
    """Return a label or group in its normal form."""
    word = class_name(str(value)) if isinstance(value, str | int) and not isinstance(value, bool) else ""
    if not word or any(0xD800 <= ord(character) < 0xE000 for character in word):
        raise DataError(f"{expected}{' in UTF-8' if word else ''}, found {value!r}")
    return word


def _parse_box(box: Any, where: str) -> Box | None:
    if box is None:
        return None
    try:
        if not isinstance(box, list) or any("_" in str(corner) or isinstance(corner, bool) for corner in box):
            raise ValueError
        x0, y0, x1, y1 = (float(corner) for corner in box)
    except (TypeError, ValueError, OverflowError):
        raise DataError(f"{where}: box: expected four numbers x0, y0, x1, y1, found {box!r}") from None
    if not (all(map(math.isfinite, (x0, y0, x1, y1))) and x1 > x0 and y1 > y0):
        raise DataError(f"{where}: box: expected x0 < x1 and y0 < y1, found {box!r}")
    return x0, y0, x1, y1


def _refuse_contradictions(rows: Sequence[_Row], path: Path) -> None:
    """Refuse a photo that stands twice, and a group with photos in two splits."""
    lines: dict[str, int] = {}
    for row in rows:
        if row.name in lines:
            raise DataError(f"{path}, line {row.line}: '{row.name}' already stands in line {lines[row.name]}")
        lines[row.name] = row.line
    first: dict[str, _Row] = {}
    for row in rows:
        other = row if row.group is None else first.setdefault(row.group, row)
        if other.split != row.split:
            raise DataError(
                f"{path}, line {row.line}: group '{row.group}' is {row.split} here and {other.split} in line {other.line}; "
                "expected all photos of a group in one split"
            )
