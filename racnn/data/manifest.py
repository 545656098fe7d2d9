"""A list of photos: a CSV or JSON Lines file with path, label, and optionally split and box."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from racnn.config import DataConfig
from racnn.data.catalog import Box, Catalog, Record, check_photos_exist, chosen_classes, hold_out
from racnn.data.folders import TEST_FRACTION
from racnn.errors import DataError, did_you_mean

CORNERS = ("x0", "y0", "x1", "y1")
COLUMNS = ("path", "label", "split", *CORNERS)  # of a CSV file
KEYS = ("path", "label", "split", "box")  # of a JSON line
SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
EXPECTED = (
    "a .csv file with the columns path, label (and split, x0, y0, x1, y1) or a .jsonl file with such keys"
)


def manifest(config: DataConfig) -> Catalog:
    """Read the list of photos that ``config.root`` names; paths in it are relative to it.

    Boxes are in pixels of the upright photo. Without a split every row is a training photo; without test rows 20 % of
    every class are held out for testing, by ``config.split_seed``. ``config.classes`` counts the sorted labels from 1.

    Raises:
        DataError: The file is missing or malformed (the line is named), or photos are missing.
    """
    if config.root is None or not config.root.expanduser().is_file():
        raise DataError(f"data.root: {config.root} is not a file; expected {EXPECTED}")
    path = config.root.expanduser()
    rows = [_parse(values, path, number) for number, values in _read_rows(path)]
    if not rows:
        raise DataError(f"{path}: holds no rows; expected {EXPECTED}")
    _refuse_doubles(rows, path)
    labels = sorted({label for _, _, label, _, _ in rows})
    chosen = [labels[i - 1] for i in chosen_classes(config, range(1, len(labels) + 1), path)]
    splits: dict[str, list[Record]] = {"train": [], "val": [], "test": []}
    for _, name, label, split, box in rows:
        if label in chosen:
            splits[split].append(Record(name, chosen.index(label), path.parent / name, box))
    check_photos_exist([record for records in splits.values() for record in records], f"listed in {path}")
    if not splits["test"]:
        splits["train"], splits["test"] = hold_out(
            splits["train"], fraction=TEST_FRACTION, seed=config.split_seed, purpose="test"
        )
    return Catalog(
        dataset="manifest",
        class_names=chosen,
        train=splits["train"],
        val=splits["val"] or None,
        test=splits["test"],
        part_names=[],
        focus_parts=(),
    )


Row = tuple[int, str, str, str, Box | None]  # line, path, label, split, box


def _read_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the number of each line and its values, the box under 'box'."""
    readers = {".csv": _read_csv, ".jsonl": _read_jsonl}
    if path.suffix.lower() not in readers:
        raise DataError(f"{path}: expected {EXPECTED}")
    try:
        yield from readers[path.suffix.lower()](path)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as text: {error}") from None


def _read_csv(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file, strict=True)
        _refuse_unknown(reader.fieldnames or (), COLUMNS, f"{path}, line 1")
        corners = [name for name in CORNERS if name in (reader.fieldnames or ())]
        if corners and len(corners) < len(CORNERS):
            raise DataError(
                f"{path}, line 1: expected all of {', '.join(CORNERS)} or none, found {', '.join(corners)}"
            )
        for values in reader:
            if None in values or None in values.values():
                raise DataError(
                    f"{path}, line {reader.line_num}: expected {len(reader.fieldnames or ())} fields"
                )
            box = [values.pop(name) for name in corners]
            yield reader.line_num, values | {"box": box if any(box) else None}


def _read_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}, line {number}: not valid JSON: {error}") from None
        if not isinstance(values, dict):
            raise DataError(f"{path}, line {number}: expected an object with the keys {', '.join(KEYS)}")
        _refuse_unknown(values, KEYS, f"{path}, line {number}")
        yield number, values


def _refuse_unknown(found: Any, known: tuple[str, ...], where: str) -> None:
    for name in found:
        if name not in known:
            raise DataError(
                f"{where}: unknown column '{name}'{did_you_mean(str(name), known)}; expected {', '.join(known)}"
            )
    for name in ("path", "label"):
        if name not in found:
            raise DataError(f"{where}: '{name}' is missing; expected {', '.join(known)}")


def _parse(values: dict[str, Any], path: Path, number: int) -> Row:
    where = f"{path}, line {number}"
    name, label, split = values["path"], values["label"], values.get("split") or "train"
    if not isinstance(name, str) or not name.strip():
        raise DataError(f"{where}: path: expected the path of a photo, found {name!r}")
    if isinstance(label, bool) or not isinstance(label, str | int) or not str(label).strip():
        raise DataError(f"{where}: label: expected the name of a class, found {label!r}")
    if split not in SPLITS:
        raise DataError(
            f"{where}: split: expected train, val or test, found {split!r}{did_you_mean(str(split), SPLITS)}"
        )
    return number, name.strip(), str(label).strip(), SPLITS[split], _parse_box(values.get("box"), where)


def _parse_box(box: Any, where: str) -> Box | None:
    if box is None:
        return None
    try:
        x0, y0, x1, y1 = (float(corner) for corner in box)
    except (TypeError, ValueError):
        raise DataError(f"{where}: box: expected four numbers x0, y0, x1, y1, found {box!r}") from None
    if not (all(map(math.isfinite, (x0, y0, x1, y1))) and x1 > x0 and y1 > y0):
        raise DataError(f"{where}: box: expected x0 < x1 and y0 < y1, found {box!r}")
    return x0, y0, x1, y1


def _refuse_doubles(rows: list[Row], path: Path) -> None:
    seen: dict[str, int] = {}
    for number, name, *_ in rows:
        if name in seen:
            raise DataError(f"{path}, line {number}: '{name}' already stands in line {seen[name]}")
        seen[name] = number
