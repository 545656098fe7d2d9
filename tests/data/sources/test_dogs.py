"""Stanford Dogs is read as its archives unpack, and what is wrong with it is named."""

import numpy as np
import pytest
from layouts import DOGS, VOC, cells, write_dogs
from scipy.io import savemat

from racnn.data.sources.dogs import dogs
from racnn.errors import DataError
from racnn.sections import DataConfig


@pytest.fixture
def root(tmp_path):
    write_dogs(tmp_path / "dogs")
    return tmp_path / "dogs"


def read(root, **changes):
    return dogs(DataConfig(dataset="dogs", root=root, **changes))


def test_photos_labels_and_splits_are_those_of_the_lists(root):
    catalog = read(root)
    assert catalog.class_names == ["Chihuahua", "Japanese spaniel", "curly-coated retriever"]
    assert (len(catalog.train), len(catalog.test), catalog.val) == (15, 6, None)
    for record in (*catalog.train, *catalog.test):
        assert DOGS[record.label + 1] in record.name
        assert record.path.is_file()
    assert not {r.name for r in catalog.train} & {r.name for r in catalog.test}


def test_the_box_is_that_of_the_largest_dog(root):
    boxes = {record.name.rpartition("_")[2]: record.box_xyxy for record in read(root).train[:5]}
    assert boxes == {
        "0.jpg": (3, 4, 21, 19),
        "1.jpg": (1, 2, 33, 29),
        "2.jpg": None,
        "3.jpg": (3, 4, 21, 19),
        "4.jpg": (3, 4, 21, 19),
    }


def test_lists_may_lie_in_a_folder_of_their_own(root):
    before = read(root)
    (root / "lists").mkdir()
    for path in root.glob("*.mat"):
        path.rename(root / "lists" / path.name)
    assert read(root) == before


def test_classes_are_chosen_by_their_ids(root):
    catalog = read(root, classes="1,3")
    assert catalog.class_names == ["Chihuahua", "curly-coated retriever"]
    assert {record.label for record in catalog.train} == {0, 1}
    with pytest.raises(DataError, match="names class 7"):
        read(root, classes="7")


def rewrite(root, files, labels):
    savemat(root / "train_list.mat", {"file_list": cells(files), "labels": np.array(labels, float)})


BREAKS = [
    (lambda root: (root / "train_list.mat").unlink(), "train_list.mat: no such file"),
    (
        lambda root: (root / "test_list.mat").write_bytes(b"junk"),
        "test_list.mat: cannot be read as a .mat file",
    ),
    (
        lambda root: savemat(root / "train_list.mat", {"files": [1]}),
        "expected a variable 'file_list', found files",
    ),
    (lambda root: rewrite(root, ["a/b.jpg", "a/c.jpg"], [1]), "as many labels as files, found 1 and 2"),
    (lambda root: rewrite(root, ["a/b.jpg", "../c.jpg"], [1, 1]), r"found '\.\./c\.jpg'"),
    (lambda root: rewrite(root, ["a/b.jpg", "c/d.jpg"], [1, 1]), "class id 1 is 'a' and 'c'"),
    (
        lambda root: next(root.glob("Images/*/*_3.jpg")).unlink(),
        r"1 of 21 photos are missing: .*_3\.jpg \(images\.tar",
    ),
    (
        lambda root: next(root.glob("Annotation/*/*_3")).write_text("<annotation>"),
        "_3: cannot be read as an annotation",
    ),
    (
        lambda root: next(root.glob("Annotation/*/*_3")).write_text(VOC.format(w=1, h=1, objects="")),
        "_3: expected a bndbox",
    ),
]


@pytest.mark.parametrize(("break_it", "said"), BREAKS)
def test_what_is_wrong_is_named(break_it, said, root):
    break_it(root)
    with pytest.raises(DataError, match=said):
        read(root)
