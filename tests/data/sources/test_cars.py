"""Stanford Cars is read in both of its layouts, and mirrors that differ are refused."""

import shutil

import pytest
from layouts import CARS, cells, structs, write_cars_apart, write_cars_together
from scipy.io import loadmat, savemat

from racnn.data.sources.cars import cars
from racnn.errors import DataError
from racnn.sections import DataConfig

WRITERS = {"together": write_cars_together, "apart": write_cars_apart}


@pytest.fixture(params=WRITERS)
def root(request, tmp_path):
    WRITERS[request.param](tmp_path / "cars")
    return tmp_path / "cars"


@pytest.fixture
def apart(tmp_path):
    write_cars_apart(tmp_path / "cars")
    return tmp_path / "cars"


def read(root, **changes):
    return cars(DataConfig(dataset="cars", root=root, **changes))


def test_photos_labels_boxes_and_splits_are_those_of_the_lists(root):
    catalog = read(root)
    assert catalog.class_names == CARS
    assert (len(catalog.train), len(catalog.test), catalog.val) == (15, 6, None)
    assert [record.label for record in catalog.train[:4]] == [0, 1, 2, 0]
    assert [record.box_xyxy for record in catalog.train[:2]] == [(2, 3, 30, 25), (2, 3, 31, 25)]
    assert all(record.path.is_file() for record in (*catalog.train, *catalog.test))
    assert len({record.name for record in (*catalog.train, *catalog.test)}) == 21


def test_classes_are_chosen_by_their_ids(root):
    catalog = read(root, classes="2-3")
    assert catalog.class_names == CARS[1:]
    assert len(catalog.train) == 10


def test_test_labels_may_lie_in_the_devkit(apart):
    before = read(apart)
    shutil.move(apart / "cars_test_annos_withlabels.mat", apart / "devkit")
    assert read(apart) == before


def test_a_mirror_without_test_labels_is_named(apart):
    (apart / "cars_test_annos_withlabels.mat").unlink()
    with pytest.raises(DataError, match=r"cars_test_annos_withlabels\.mat is missing.*put it into"):
        read(apart)


def test_a_mirror_with_other_numbers_is_named(apart):
    for path in sorted((apart / "cars_test").iterdir()):
        path.rename(path.with_name(f"x{path.name}"))
    with pytest.raises(DataError, match=r"6 of 21 photos are missing: .*00001\.jpg.*some mirrors renumber"):
        read(apart)


def test_a_mirror_that_counts_classes_from_0_is_named(apart):
    path = apart / "devkit" / "cars_train_annos.mat"
    rows = loadmat(path)["annotations"]
    for i in range(rows.shape[1]):
        rows["class"][0, i] = rows["class"][0, i] - 1
    savemat(path, {"annotations": rows})
    with pytest.raises(DataError, match="class id 0 has no name; expected 1 to 3"):
        read(apart)


GOOD = {"bbox_x1": 1, "bbox_y1": 1, "bbox_x2": 9, "bbox_y2": 9, "class": 1, "fname": "00001.jpg"}
BAD_ROWS = [
    ({"bbox_x2": 1}, "expected bbox_x1 < bbox_x2"),
    ({"bbox_x2": "wide"}, "expected numbers in bbox_x1"),
    ({"class": "Audi"}, "expected a whole number, found 'Audi'"),
    ({"fname": "../../etc/passwd"}, "expected a photo inside the folder"),
]


@pytest.mark.parametrize(("changes", "said"), BAD_ROWS)
def test_a_wrong_row_is_named(changes, said, apart):
    savemat(apart / "devkit" / "cars_train_annos.mat", {"annotations": structs([GOOD | changes, GOOD])})
    with pytest.raises(DataError, match=said):
        read(apart)


def test_a_missing_field_is_named(apart):
    rows = [{key: value for key, value in GOOD.items() if key != "class"}]
    savemat(apart / "devkit" / "cars_train_annos.mat", {"annotations": structs(rows)})
    with pytest.raises(DataError, match="to have the fields fname, class"):
        read(apart)


def test_missing_names_and_folders_are_named(apart):
    savemat(apart / "devkit" / "cars_meta.mat", {"names": cells(CARS)})
    with pytest.raises(DataError, match=r"cars_meta\.mat: expected a variable 'class_names', found names"):
        read(apart)
    shutil.rmtree(apart / "devkit")
    with pytest.raises(DataError, match=r"expected car_ims/ with cars_annos\.mat, or cars_train/"):
        read(apart)


def test_a_list_of_the_other_layout_beside_it_does_no_harm(apart, tmp_path):
    before = read(apart)
    write_cars_together(tmp_path / "other")
    shutil.copy(tmp_path / "other" / "cars_annos.mat", apart)
    assert read(apart) == before
