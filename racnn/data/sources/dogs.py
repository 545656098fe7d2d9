"""Stanford Dogs (Khosla et al. 2011): 120 breeds, as the three archives of its page unpack."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

from racnn.data.sources.catalog import Box, Catalog, Record, check_photos_exist, chosen_classes, existing_root
from racnn.data.sources.matfiles import read_mat
from racnn.errors import DataError
from racnn.sections import DataConfig


def dogs(config: DataConfig) -> Catalog:
    """Read Stanford Dogs: ``Images/<class>/*.jpg``, ``train_list.mat``, ``test_list.mat``, ``Annotation/<class>/*``.

    The annotations are optional. A photo with several dogs has the box of the largest. ``config.classes`` names the
    class ids of the lists, from 1.

    Raises:
        DataError: A list, photo or annotation is missing or damaged, or the lists contradict each other.
    """
    root = existing_root(config, "a folder with Images/, train_list.mat and test_list.mat")
    lists = {split: _read_list(root, f"{split}_list.mat") for split in ("train", "test")}
    folder_of: dict[int, str] = {}
    for split, rows in lists.items():
        for file, class_id in rows:
            folder = file.partition("/")[0]
            if folder_of.setdefault(class_id, folder) != folder:
                raise DataError(
                    f"{split}_list.mat: class id {class_id} is '{folder_of[class_id]}' and '{folder}'; expected one folder a class"
                )
    class_ids = chosen_classes(config, folder_of, root / "train_list.mat")
    label_of = {class_id: label for label, class_id in enumerate(class_ids)}
    splits = {
        split: [
            Record(
                f"Images/{relative}",
                label_of[class_id],
                root / "Images" / relative,
                _read_box((root / "Annotation" / relative).with_suffix("")),
            )
            for relative, class_id in rows
            if class_id in label_of
        ]
        for split, rows in lists.items()
    }
    check_photos_exist([*splits["train"], *splits["test"]], "images.tar unpacks to Images/")
    class_names = [re.sub(r"^n\d+-", "", folder_of[class_id]).replace("_", " ") for class_id in class_ids]
    return Catalog("dogs", class_names, train=splits["train"], val=None, test=splits["test"])


def _read_list(root: Path, name: str) -> list[tuple[str, int]]:
    """Return (photo, class id) for every row of a list; lists.tar unpacks into the folder it is unpacked in."""
    path = root / "lists" / name
    path = path if path.is_file() else root / name
    content = read_mat(path, "file_list", "labels")
    files, labels = content["file_list"], content["labels"]
    if len(files) != len(labels):
        raise DataError(f"{path}: expected as many labels as files, found {len(labels)} and {len(files)}")
    rows = [(str(file), int(label)) for file, label in zip(files, labels, strict=True)]
    for file, _ in rows:
        if not re.fullmatch(r"[^/\\]+/[^/\\]+", file) or ".." in Path(file).parts:
            raise DataError(
                f"{path}: expected files such as 'n02085620-Chihuahua/n02085620_10074.jpg', found '{file}'"
            )
    return rows


def _read_box(path: Path) -> Box | None:
    """Return the largest object's box of a PASCAL VOC annotation; None where there is no annotation."""
    if not path.is_file():
        return None
    try:
        tree = ElementTree.parse(path)
        boxes = [
            tuple(float(box.findtext(corner, "")) for corner in ("xmin", "ymin", "xmax", "ymax"))
            for box in tree.iter("bndbox")
        ]
    except (ElementTree.ParseError, ValueError, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as an annotation: {error}") from None
    sized = [(x0, y0, x1, y1) for x0, y0, x1, y1 in boxes if x1 > x0 and y1 > y0]
    if not sized:
        raise DataError(f"{path}: expected a bndbox with xmin < xmax and ymin < ymax")
    return max(sized, key=lambda box: (box[2] - box[0]) * (box[3] - box[1]))
