"""A manifest of either kind gives the same catalog, and a wrong line is named by its number."""

import pytest
from layouts import manifest_rows, write_manifest

from racnn.data.sources.manifest import manifest
from racnn.errors import DataError
from racnn.sections import DataConfig


@pytest.fixture
def rows(tmp_path):
    return manifest_rows(tmp_path)


def read(path, **changes):
    return manifest(DataConfig(dataset="manifest", root=path, **changes))


@pytest.fixture(params=["list.csv", "list.jsonl"])
def path(request, rows, tmp_path):
    write_manifest(tmp_path / request.param, rows)
    return tmp_path / request.param


def test_the_catalog_is_what_the_rows_say(path, rows):
    catalog = read(path)
    assert catalog.class_names == ["finch", "robin", "wren"]
    assert (len(catalog.train), len(catalog.test), catalog.val) == (18, 6, None)
    for record, row in zip((*catalog.train, *catalog.test), rows, strict=True):
        assert record.name == row["path"]
        assert catalog.class_names[record.label] == row["label"]
        assert record.box_xyxy == (tuple(row["box"]) if row["box"] else None)
        assert record.path == path.parent / row["path"]


def test_rows_without_a_split_are_shared_out(rows, tmp_path):
    for row in rows:
        del row["split"]
    write_manifest(tmp_path / "list.jsonl", rows)
    catalog = read(tmp_path / "list.jsonl")
    assert len(catalog.train) + len(catalog.test) == 24
    assert [sum(record.label == label for record in catalog.test) for label in range(3)] == [2, 2, 2]


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_validation_rows_are_used_as_they_are(rows, name, tmp_path):
    for row in rows[:3]:
        row["split"] = name
    write_manifest(tmp_path / "list.csv", rows)
    assert [record.name for record in read(tmp_path / "list.csv").val] == [row["path"] for row in rows[:3]]


WRONG_LINES = [
    ({"path": ""}, "path: expected the path of a photo"),
    ({"label": " "}, "label: expected the name of a class"),
    ({"split": "tset"}, r"split: expected train, val or test, found 'tset'.*'test'"),
    ({"box": [1, 2, 3]}, "box: expected four numbers"),
    ({"box": [9, 2, 3, 4]}, "box: expected x0 < x1"),
    ({"box": [1, 2, float("nan"), 4]}, "box: expected x0 < x1"),
    ({"path": "photos/0.png"}, "'photos/0.png' already stands in line 1"),
    ({"lable": "x"}, r"unknown column 'lable'.*'label'"),
]


@pytest.mark.parametrize(("changes", "said"), WRONG_LINES)
def test_a_wrong_json_line_is_named(changes, said, rows, tmp_path):
    rows[3] |= changes
    write_manifest(tmp_path / "list.jsonl", rows)
    with pytest.raises(DataError, match=rf"list\.jsonl, line 4: {said}"):
        read(tmp_path / "list.jsonl")


WRONG_FILES = [
    ("list.csv", "path,label,x0\n", "line 1: expected all of x0, y0, x1, y1 or none, found x0"),
    ("list.csv", "path,label\nphotos/0.png\n", "line 2: expected 2 fields"),
    ("list.csv", "path,label\nphotos/0.png,wren,1\n", "line 2: expected 2 fields"),
    ("list.csv", "path,name\n", "line 1: unknown column 'name'"),
    ("list.csv", "path\n", "line 1: 'label' is missing"),
    ("list.csv", "path,label\n", "holds no rows"),
    ("list.jsonl", "[1]\n", "line 1: expected an object"),
    ("list.jsonl", "{\n", "line 1: not valid JSON"),
    ("list.txt", "photos/0.png wren\n", r"expected a \.csv file"),
    ("list.csv", "path,label\nphotos/none.png,wren\n", r"1 of 1 photos are missing: .*none\.png"),
]


@pytest.mark.parametrize(("name", "text", "said"), WRONG_FILES)
def test_a_wrong_file_is_named(name, text, said, rows, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=said):
        read(tmp_path / name)


@pytest.mark.parametrize("root", [None, "nowhere.csv"])
def test_a_missing_file_is_named(root, tmp_path):
    with pytest.raises(DataError, match=r"data\.root: .* is not a file; expected a \.csv"):
        read(root and tmp_path / root)


def test_numbers_may_name_classes(rows, tmp_path):
    for row in rows:
        row["label"] = len(row["label"])
    write_manifest(tmp_path / "list.jsonl", rows)
    assert read(tmp_path / "list.jsonl").class_names == ["4", "5"]
