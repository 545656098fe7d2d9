"""A photo in, an answer out, whatever it is given as; and the same answer everywhere."""

import json

import numpy as np
import pytest
from PIL import Image

import racnn
from racnn.errors import CheckpointError, DataError

PHOTO = np.random.default_rng(0).integers(0, 256, (40, 70, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def predictor(finished):
    return racnn.load(finished.folder / "best.pt")


@pytest.fixture
def path(tmp_path):
    Image.fromarray(PHOTO).save(tmp_path / "a.png")
    return tmp_path / "a.png"


def test_every_way_to_give_a_photo_gives_the_same_answer(predictor, path):
    answers = [predictor.predict(given) for given in (str(path), path, PHOTO, Image.fromarray(PHOTO))]
    assert answers[0].path == path
    assert answers[2].path is None
    first = answers[0]
    assert first.name == first.top[0][0] in predictor.class_names
    assert first.probability == max(p for _, p in first.top)
    for answer in answers:
        assert answer.top == first.top
        assert answer.boxes_xyxy == first.boxes_xyxy
        assert [tuple(view.shape) for view in answer.views] == [(3, 32, 32)] * 3
        assert set(answer.looks) == {"scale_1", "scale_2", "scale_3", "fused"}
        assert np.array_equal(answer.photo, PHOTO)


def test_a_folder_or_a_list_gives_a_list_in_order(predictor, path):
    Image.fromarray(PHOTO[:, ::-1]).save(path.with_name("b.png"))
    folder = predictor.predict(path.parent)
    assert [found.path.name for found in folder] == ["a.png", "b.png"]
    listed = predictor.predict([path, PHOTO[:, ::-1].copy(), path.parent], batch_size=3)
    assert [found.path and found.path.name for found in listed] == ["a.png", None, "a.png", "b.png"]
    assert listed[1].name == folder[1].name
    assert listed[1].probability == pytest.approx(folder[1].probability, abs=1e-5)
    assert predictor.predict([]) == []


def test_a_grey_array_and_a_turned_picture_are_photos(predictor):
    grey = predictor.predict(PHOTO[..., 0])
    assert grey.top == predictor.predict(np.stack([PHOTO[..., 0]] * 3, -1)).top
    turned = Image.fromarray(np.ascontiguousarray(np.rot90(PHOTO)))
    turned.getexif()[0x0112] = 6
    assert predictor.predict(turned).top == predictor.predict(PHOTO).top


def test_the_commands_give_the_same_answer_in_the_same_words(predictor, path, finished, racnn, tmp_path):
    best = finished.folder / "best.pt"
    found = predictor.predict(path).to_dict()
    row = json.loads(racnn("predict", best, path, "--json", "--workers", 0).out)
    assert row.keys() <= found.keys()
    assert row["boxes_xyxy"] == pytest.approx(np.array(found["boxes_xyxy"]), abs=0.01)
    assert [answer["name"] for answer in row["top"]] == [answer["name"] for answer in found["top"]]
    assert racnn("visualize", best, path, "--out", tmp_path / "out").code == 0
    (drawn,) = json.loads((tmp_path / "out" / "regions.json").read_text())
    assert drawn == found | {"picture": "a.png"}
    with Image.open(tmp_path / "out" / "a.png") as picture:
        assert np.array_equal(np.asarray(picture), np.asarray(predictor.predict(path).show()))


def test_why_is_of_the_answer_and_the_next_best(predictor, path, finished, racnn, tmp_path):
    plain, found = predictor.predict(path), predictor.predict(path, top=1, why=True)
    assert plain.why is None
    assert [name for name, _ in found.top] == [name for name, _ in plain.top[:2]]
    assert len(found.why) == 3
    for cells in found.why:
        assert cells.ndim == 2
        assert cells.min() >= 0.0
        assert cells.max() > 0.0
    assert racnn("visualize", finished.folder / "best.pt", path, "--out", tmp_path / "out", "--why").code == 0
    with Image.open(tmp_path / "out" / "a.png") as picture:
        drawn = np.asarray(picture)
    assert np.array_equal(drawn, np.asarray(found.show()))
    assert drawn.shape[0] > np.asarray(plain.show()).shape[0], "the classes are named above"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (PHOTO.astype(np.float32), "uint8 array .*float32"),
        (PHOTO[None], r"uint8 array .*\[1, 40, 70, 3\]"),
        (PHOTO[:0], "uint8 array"),
        (7, "got int"),
        ("nowhere.png", "no such photo or folder"),
        (Image.fromarray(np.ones((4, 4), np.float32)), "mode F"),
    ],
)
def test_what_is_no_photo_is_refused(predictor, given, said):
    with pytest.raises(DataError, match=said):
        predictor.predict(given)


def test_the_old_name_still_loads(finished, tmp_path):
    assert racnn.load_trained is racnn.load
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        racnn.load(tmp_path / "none.pt")
