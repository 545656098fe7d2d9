"""CUB-200-2011 (Wah et al. 2011), and any data set in its layout."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from pathlib import Path

from racnn.data.sources.catalog import Box, Catalog, Part, Record, chosen_classes, existing_root
from racnn.data.tables import IdTable, cub_folder
from racnn.sections import DataConfig

CUB_HEAD = frozenset({"beak", "crown", "forehead", "left eye", "right eye", "nape", "throat"})


def cub200(config: DataConfig) -> Catalog:
    """Read CUB-200-2011, or any data set in its layout.

    ``config.classes`` names class ids as they stand in classes.txt; without it, all classes that have photos. Ids may
    have gaps. bounding_boxes.txt and the two files in parts/ are optional, as a whole and for each photo.

    Raises:
        DataError: A file or photo is missing, a line is malformed, or ids contradict each other.
    """
    root = cub_folder(existing_root(config, "a folder with images.txt and images/"), "images.txt")
    images = IdTable(root / "images.txt", "<image id> <path>", int, str)
    labels = IdTable(root / "image_class_labels.txt", "<image id> <class id>", int, int)
    classes = IdTable(root / "classes.txt", "<class id> <name>", int, str)
    split = IdTable(root / "train_test_split.txt", "<image id> <1 for training or 0 for test>", int, _flag)
    boxes = _read_boxes(root / "bounding_boxes.txt")
    part_names, parts = _read_parts(root / "parts" / "parts.txt", root / "parts" / "part_locs.txt")

    for image_id, (class_id,) in labels.values.items():
        if class_id not in classes.values:
            labels.fail(image_id, f"class id {class_id} is not in {classes.path}")
    class_of = {image_id: labels.of(image_id, images)[0] for image_id in images.values}
    class_ids = chosen_classes(config, set(class_of.values()), images.path)
    label_of = {class_id: label for label, class_id in enumerate(class_ids)}

    splits: dict[bool, list[Record]] = {True: [], False: []}
    seen: set[str] = set()
    for image_id, (relative,) in images.values.items():
        if class_of[image_id] not in label_of:
            continue
        path = root / "images" / relative
        if not path.is_file():
            images.fail(image_id, f"the photo {path} does not exist")
        if relative in seen:
            images.fail(image_id, f"'{relative}' stands twice")
        seen.add(relative)
        located = parts.get(image_id, {})
        record = Record(
            name=f"images/{relative}",
            label=label_of[class_of[image_id]],
            path=path,
            box_xyxy=boxes.get(image_id),
            parts=tuple(located.get(part_id, (0.0, 0.0, 0.0)) for part_id in part_names),
        )
        splits[split.of(image_id, images)[0]].append(record)
    names = (re.sub(r"^\d+\.", "", classes.values[class_id][0]) for class_id in class_ids)
    class_names = [
        name.replace("_", " ") for name in names
    ]  # 001.Black_footed_Albatross is Black footed Albatross
    return Catalog(
        dataset="cub200",
        class_names=class_names,
        train=splits[True],
        val=None,
        test=splits[False],
        part_names=list(part_names.values()),
        focus_parts=tuple(i for i, name in enumerate(part_names.values()) if name in CUB_HEAD),
    )


def _read_boxes(path: Path) -> dict[int, Box]:
    """Return the box of every image that has one."""
    if not path.is_file():
        return {}
    columns = "<image id> <x> <y> <width> <height>"
    table = IdTable(path, columns, int, _finite, _finite, _positive, _positive)
    return {image_id: (x, y, x + w, y + h) for image_id, (x, y, w, h) in table.values.items()}


def _read_parts(names_path: Path, places_path: Path) -> tuple[dict[int, str], dict[int, dict[int, Part]]]:
    """Return the parts' names by part id, and where they are by image id and part id."""
    if not (names_path.is_file() and places_path.is_file()):
        return {}, {}
    named = IdTable(names_path, "<part id> <name>", int, str)
    names = {part_id: name for part_id, (name,) in named.values.items()}
    columns = "<image id> <part id> <x> <y> <1 if visible, else 0>"
    table = IdTable(places_path, columns, int, int, _finite, _finite, _flag, num_keys=2)
    places: dict[int, dict[int, Part]] = defaultdict(dict)
    for (image_id, part_id), (x, y, visible) in table.values.items():
        if part_id not in names:
            table.fail((image_id, part_id), f"part id {part_id} is not in {names_path}")
        places[image_id][part_id] = (x, y, float(visible))
    return names, places


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError
    return value


def _positive(text: str) -> float:
    value = _finite(text)
    if value <= 0:
        raise ValueError
    return value


def _flag(text: str) -> bool:
    return {"0": False, "1": True}[text]
