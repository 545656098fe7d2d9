"""What the data sets read from disk, and how they say that something is wrong with it."""

from collections import Counter

import numpy as np
import pytest
from layouts import write_photo

from racnn.data import build_data
from racnn.data.sources.catalog import Record, hold_out
from racnn.data.sources.cub import cub200
from racnn.data.sources.drawing import draw
from racnn.data.sources.folder import folder
from racnn.data.sources.synthetic import synthetic_catalog
from racnn.errors import DataError
from racnn.sections import DataConfig


def replace_line(path, number, line):
    lines = path.read_text().splitlines()
    lines[number - 1] = line
    path.write_text("\n".join(lines) + "\n")


@pytest.fixture
def cub_root(tmp_path):
    """Three classes with ids 3, 7 and 12 (20 has no photos); images 5, 10, ... of different sizes."""
    root = tmp_path / "CUB_200_2011"
    (root / "parts").mkdir(parents=True)
    classes = {3: "003.Sooty_Albatross", 7: "007.Parakeet_Auklet", 12: "012.Yellow-headed_Blackbird"}
    images, labels, split, boxes, places = [], [], [], [], []
    for i in range(12):
        image_id, class_id = 5 * (i + 1), list(classes)[i % 3]
        relative = f"{classes[class_id]}/photo {i:02d}.png"
        write_photo(root / "images" / relative, size=(20 + i, 30 - i), seed=i)
        images.append(f"{image_id} {relative}")
        labels.append(f"{image_id} {class_id}")
        split.append(f"{image_id} {int(i < 9)}")
        boxes.append(f"{image_id} {i}.0 2.0 10.0 {5 + i}.5")
        places += [f"{image_id} 1 {i}.5 3.0 1", f"{image_id} 4 0.0 0.0 0"]
    tables = {
        "images.txt": images,
        "image_class_labels.txt": labels,
        "classes.txt": [f"{k} {v}" for k, v in classes.items()] + ["20 020.Nobody"],
        "train_test_split.txt": split,
        "bounding_boxes.txt": boxes[:-1],
        "parts/parts.txt": ["1 back", "2 beak", "4 left eye"],
        "parts/part_locs.txt": places,
    }
    for name, lines in tables.items():
        (root / name).write_text("\n".join(lines) + "\n")
    return root


# --- CUB-200-2011


def test_cub_reads_gapped_ids_boxes_and_parts(cub_root):
    catalog = cub200(DataConfig(root=cub_root))
    assert catalog.class_names == ["Sooty Albatross", "Parakeet Auklet", "Yellow-headed Blackbird"]
    assert [r.label for r in catalog.train] == [0, 1, 2] * 3
    assert [r.label for r in catalog.test] == [0, 1, 2]
    assert catalog.val is None
    second = catalog.train[1]
    assert second.name == "images/007.Parakeet_Auklet/photo 01.png"
    assert catalog.load(second).shape == (29, 21, 3)
    assert second.box_xyxy == (1.0, 2.0, 11.0, 8.5)
    assert catalog.part_names == ["back", "beak", "left eye"]
    assert catalog.focus_parts == (1, 2)
    assert second.parts == ((1.5, 3.0, 1.0), (0.0, 0.0, 0.0), (0.0, 0.0, 0.0))
    assert catalog.annotate(second) == (second.box_xyxy, second.parts)
    assert catalog.test[-1].box_xyxy is None  # its line is missing


def test_cub_root_may_be_the_folder_above(cub_root):
    assert cub200(DataConfig(root=cub_root.parent)).train == cub200(DataConfig(root=cub_root)).train


def test_cub_classes_are_ids_and_labels_are_renumbered(cub_root):
    (
        cub_root / "images" / "003.Sooty_Albatross" / "photo 00.png"
    ).unlink()  # of a class that is not asked for
    catalog = cub200(DataConfig(root=cub_root, classes="12,7"))
    assert catalog.class_names == ["Parakeet Auklet", "Yellow-headed Blackbird"]
    assert {(r.path.parent.name[:3], r.label) for r in catalog.train} == {("007", 0), ("012", 1)}


def test_cub_boxes_and_parts_are_optional(cub_root):
    (cub_root / "bounding_boxes.txt").unlink()
    (cub_root / "parts" / "part_locs.txt").unlink()
    catalog = cub200(DataConfig(root=cub_root))
    assert catalog.part_names == []
    assert catalog.focus_parts == ()
    assert all(r.box_xyxy is None and r.parts == () for r in catalog.train)


@pytest.mark.parametrize("classes", ["1-10", "20"])
def test_cub_refuses_classes_without_photos(cub_root, classes):
    with pytest.raises(DataError, match=r"data\.classes.*no photos.*expected 3 ids from 3 to 12"):
        cub200(DataConfig(root=cub_root, classes=classes))


@pytest.mark.parametrize(
    ("file", "number", "line", "said"),
    [
        ("images.txt", 2, "10", "expected '<image id> <path>', found '10'"),
        ("images.txt", 3, "ten photo.jpg", "expected '<image id> <path>'"),
        ("images.txt", 2, "5 again.jpg", "id 5 already stands in line 1"),
        ("images.txt", 2, "10 nowhere/photo.jpg", "does not exist"),
        ("images.txt", 4, "20 003.Sooty_Albatross/photo 00.png", "stands twice"),
        (
            "images.txt",
            4,
            "999 003.Sooty_Albatross/photo 03.png",
            "id 999 has no line '<image id> <class id>'",
        ),
        ("image_class_labels.txt", 2, "10 8", "class id 8 is not in"),
        ("image_class_labels.txt", 2, "10 7 7", "expected '<image id> <class id>'"),
        ("train_test_split.txt", 5, "25 2", "1 for training or 0 for test"),
        ("bounding_boxes.txt", 1, "5 1.0 1.0 0.0 9.0", "<width> <height>"),
        ("bounding_boxes.txt", 1, "5 nan 1.0 3.0 9.0", "<width> <height>"),
        ("parts/part_locs.txt", 2, "5 3 1.0 1.0 1", "part id 3 is not in"),
    ],
)
def test_cub_names_file_and_line_of_a_mistake(cub_root, file, number, line, said):
    replace_line(cub_root / file, number, line)
    with pytest.raises(DataError) as caught:
        cub200(DataConfig(root=cub_root))
    assert f"{cub_root / file}, line {number}: " in str(caught.value)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "file", ["images.txt", "image_class_labels.txt", "classes.txt", "train_test_split.txt"]
)
def test_cub_names_a_missing_file(cub_root, file):
    (cub_root / file).unlink()
    with pytest.raises(DataError, match=rf"{file}: no such file; expected lines '<"):
        cub200(DataConfig(root=cub_root))


def test_cub_names_a_file_that_is_not_text(cub_root):
    (cub_root / "classes.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"classes\.txt: cannot be read as text"):
        cub200(DataConfig(root=cub_root))


@pytest.mark.parametrize("read", [cub200, folder])
def test_missing_root_is_named(tmp_path, read):
    with pytest.raises(DataError, match=r"data\.root: not set; expected a folder"):
        read(DataConfig())
    with pytest.raises(DataError, match=r"nowhere is not a folder; expected"):
        read(DataConfig(root=tmp_path / "nowhere"))


# --- a folder of class folders


def write_classes(place, counts):
    for name, count in counts.items():
        (place / name).mkdir(parents=True)
        for i in range(count):
            write_photo(place / name / f"{i}.png", seed=i)


def counts_of(records):
    return Counter(r.label for r in records)


def test_folder_without_splits_draws_a_stratified_test_split(tmp_path):
    write_classes(tmp_path, {"wren": 10, "auk": 5, "tit": 2, "owl": 1})
    catalog = folder(DataConfig(dataset="folder", root=tmp_path))
    assert catalog.class_names == ["auk", "owl", "tit", "wren"]
    assert counts_of(catalog.test) == {0: 1, 2: 1, 3: 2}
    assert counts_of(catalog.train) == {0: 4, 1: 1, 2: 1, 3: 8}
    assert {r.name for r in catalog.train}.isdisjoint(r.name for r in catalog.test)
    assert catalog.train[0].name.startswith("auk/")
    other = folder(DataConfig(dataset="folder", root=tmp_path, split_seed=1))
    assert other.test != catalog.test


@pytest.mark.parametrize("alias", ["val", "valid", "Validation"])
def test_folder_with_splits_uses_them(tmp_path, alias):
    write_classes(tmp_path / "train", {"b": 2, "a": 2})
    write_classes(tmp_path / alias, {"a": 1, "b": 1})
    write_classes(tmp_path / "test", {"b": 3})
    catalog = folder(DataConfig(dataset="folder", root=tmp_path))
    assert [r.name for r in catalog.train] == [
        "train/a/0.png",
        "train/a/1.png",
        "train/b/0.png",
        "train/b/1.png",
    ]
    assert [r.name for r in catalog.val] == [f"{alias}/a/0.png", f"{alias}/b/0.png"]
    assert counts_of(catalog.test) == {1: 3}


def test_folder_finds_every_suffix_deep_inside_and_ignores_hidden_files(tmp_path):
    write_classes(tmp_path, {"a": 2, "b": 2, "__MACOSX": 1, ".cache": 1})
    for suffix in ("JPG", "jpeg", "bmp", "webp", "tif", "TIFF"):
        write_photo(tmp_path / "a" / "deep" / "er" / f"photo.{suffix}")
    write_photo(tmp_path / "a" / ".trash" / "photo.png")
    (tmp_path / "a" / "._0.png").write_bytes(b"")
    (tmp_path / ".DS_Store").write_bytes(b"")
    (tmp_path / "a" / "notes.txt").write_text("no photo")
    catalog = folder(DataConfig(dataset="folder", root=tmp_path))
    assert catalog.class_names == ["a", "b"]
    assert counts_of(catalog.train + catalog.test) == {0: 8, 1: 2}


def test_folder_class_may_be_called_train(tmp_path):
    write_classes(tmp_path, {"train": 3, "plane": 3})
    assert folder(DataConfig(dataset="folder", root=tmp_path)).class_names == ["plane", "train"]


def test_folder_classes_are_positions(tmp_path):
    write_classes(tmp_path, {"a": 3, "b": 3, "c": 3})
    catalog = folder(DataConfig(dataset="folder", root=tmp_path, classes="1,3"))
    assert catalog.class_names == ["a", "c"]
    assert {(r.name[0], r.label) for r in catalog.train} == {("a", 0), ("c", 1)}
    with pytest.raises(DataError, match=r"names class 4.*expected 3 ids from 1 to 3"):
        folder(DataConfig(dataset="folder", root=tmp_path, classes="3-4"))


def test_folder_mistakes_are_named(tmp_path):
    config = DataConfig(dataset="folder", root=tmp_path)
    with pytest.raises(DataError, match="expected one folder of photos for each class"):
        folder(config)
    write_classes(tmp_path / "train", {"heron": 2, "gull": 2})
    write_classes(tmp_path / "test", {"herron": 1})
    with pytest.raises(DataError, match=r"test/herron: no class.*did you mean 'heron'"):
        folder(config)
    (tmp_path / "test").rename(tmp_path / "val")
    with pytest.raises(DataError, match=r"val/herron: no class"):
        folder(config)
    (tmp_path / "val" / "herron").rename(tmp_path / "val" / "heron")
    (tmp_path / "train" / "tern").mkdir()
    with pytest.raises(DataError, match=r"train/tern: expected photos \(.*\) of class 'tern', found none"):
        folder(config)
    (tmp_path / "valid").mkdir()
    with pytest.raises(DataError, match="expected one folder of validation photos"):
        folder(config)


# --- splits


def test_hold_out_is_stratified_and_independent_of_order_and_of_other_classes():
    records = [Record(f"{label}/{i}", label) for label, n in enumerate((20, 7, 2, 1)) for i in range(n)]
    kept, held = hold_out(records, fraction=0.25, seed=3, purpose="val")
    assert counts_of(held) == {0: 5, 1: 2, 2: 1}
    assert sorted(r.name for r in kept + held) == sorted(r.name for r in records)
    kept_reversed, held_reversed = hold_out(records[::-1], fraction=0.25, seed=3, purpose="val")
    assert (kept_reversed[::-1], held_reversed[::-1]) == (kept, held)
    alone = hold_out([r for r in records if r.label == 0], fraction=0.25, seed=3, purpose="val")[1]
    assert alone == [r for r in held if r.label == 0]
    mixed = [*records, Record("x", 4, group="g"), Record("y", 4, group="h")]
    assert [r for r in hold_out(mixed, fraction=0.25, seed=3, purpose="val")[1] if r.label < 4] == held
    assert hold_out(records, fraction=0.25, seed=4, purpose="val")[1] != held
    assert counts_of(hold_out(records, fraction=0.99, seed=3, purpose="val")[0]) == {0: 1, 1: 1, 2: 1, 3: 1}


def test_hold_out_never_changes():
    """A checkpoint's split can be drawn again years later: the five least `printf val:3:$i | sha256sum`."""
    held = hold_out([Record(str(i), 0) for i in range(20)], fraction=0.25, seed=3, purpose="val")[1]
    assert [r.name for r in held] == ["1", "3", "6", "8", "19"]


# --- drawn birds


def test_synthetic_records_agree_with_their_drawings():
    config = DataConfig(dataset="synthetic", source_size=64, synthetic={"num_train": 24, "num_test": 8})
    catalog = synthetic_catalog(config)
    assert (len(catalog.train), len(catalog.test), len(catalog.class_names)) == (24, 8, 8)
    assert {r.name for r in catalog.train}.isdisjoint(r.name for r in catalog.test)
    assert catalog.focus_parts == (0,)
    for record, index in ((catalog.train[11], 11), (catalog.test[3], 1_000_003)):
        drawing = draw(seed=0, index=index, size=64)
        assert record.label == drawing.label
        assert np.array_equal(catalog.load(record), drawing.image)
        box, ((x, y, visible),) = catalog.annotate(record)
        assert box == drawing.bird_xyxy
        assert box[0] < x < box[2]
        assert box[1] < y < box[3]
        assert visible == 1
    assert catalog.load(catalog.train[0]) is catalog.load(catalog.train[0])


def test_synthetic_classes_leave_out_the_other_species():
    config = DataConfig(dataset="synthetic", classes="3-4", synthetic={"num_train": 24, "num_test": 8})
    catalog = synthetic_catalog(config)
    assert len(catalog.class_names) == 2
    assert [(r.name[-2:], r.label) for r in catalog.train[:3]] == [("02", 0), ("03", 1), ("10", 0)]


def test_folder_of_one_class_is_told_what_may_be_meant(tmp_path):
    write_classes(tmp_path / "birds", {"a": 4, "b": 4})
    with pytest.raises(DataError, match=r"found only 'birds'; did you mean .*birds, which holds 2 folders"):
        folder(DataConfig(dataset="folder", root=tmp_path))
    write_classes(tmp_path / "other", {"a": 4})
    with pytest.raises(DataError, match=r"found only 'a'$"):
        folder(DataConfig(dataset="folder", root=tmp_path / "other"))


def grouped(groups):
    """Return the records of (label, group, number of photos) in turn."""
    rows = [(label, group) for label, group, number in groups for _ in range(number)]
    return [Record(f"{i}", label, group=group) for i, (label, group) in enumerate(rows)]


@pytest.mark.parametrize("seed", range(5))
def test_no_group_is_torn_by_a_split(seed):
    nests = [(label, f"{label} {i}", 1 + (7 * i + label) % 5) for label in range(3) for i in range(8)]
    shared = [(0, "site", 4), (1, "site", 3)]
    records = grouped([*nests, *shared, (2, None, 6)])
    kept, held = hold_out(records, fraction=0.2, seed=seed, purpose="test")
    assert sorted(r.name for r in kept + held) == sorted(r.name for r in records)
    assert {r.group for r in kept if r.group}.isdisjoint(r.group for r in held)
    total, out = counts_of(records), counts_of(held)
    for label in range(3):
        assert 0 < out[label] <= round(0.2 * total[label])
    again = hold_out(records[::-1], fraction=0.2, seed=seed, purpose="test")[1]
    assert sorted(r.name for r in again) == sorted(r.name for r in held)


def test_a_class_of_one_group_stays_whole():
    kept, held = hold_out(
        grouped([(0, "nest", 9), (1, "a", 4), (1, "b", 6)]), fraction=0.2, seed=0, purpose="test"
    )
    assert counts_of(kept) == {0: 9, 1: 6}
    assert counts_of(held) == {1: 4}  # the smaller one, though it is more than a fifth


def test_numbered_classes_of_an_earlier_version_are_found_again(tmp_path):
    """It counted them as text: its classes 1-2 were 1 and 10, in that order."""
    write_classes(tmp_path, {name: 4 for name in ("1", "2", "10")})
    config = DataConfig(dataset="folder", root=tmp_path, classes="1-2")
    assert folder(config).class_names == ["1", "2"]
    data = build_data(config, seed=0, class_names=["1", "10"])
    assert data.class_names == ["1", "10"]
    for split in data.splits.values():
        assert {record.name.split("/")[0] for record in split.records} <= {"1", "10"}
        assert all(data.class_names[r.label] == r.name.split("/")[0] for r in split.records)
    every = build_data(config.model_copy(update={"classes": None}), seed=0, class_names=["1", "10", "2"])
    assert every.class_names == ["1", "10", "2"]
    assert [r.label for r in every.splits["train"].records] == sorted(
        r.label for r in every.splits["train"].records
    )
    with pytest.raises(DataError, match="'5' is missing"):
        build_data(config, seed=0, class_names=["1", "5"])
