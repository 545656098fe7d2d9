"""Wide scenes: a rule that is kept, the same every time, with boxes that are true."""

import pickle

import cv2
import layouts
import numpy as np
import pytest

from racnn.data import build_data
from racnn.data.sources import scene
from racnn.data.sources.catalog import Catalog, Record
from racnn.data.sources.scene import AREA, MARGIN, NUM_DISTRACTORS, in_scenes
from racnn.errors import ConfigError, DataError
from racnn.evaluation.diagnostics import describe_data
from racnn.sections import DataConfig

SIZE = 384


def drawn(**changes):
    values = {"dataset": "synthetic", "scene_size": SIZE, "source_size": SIZE}
    values |= {"synthetic": {"num_train": 48, "num_test": 8}, "num_workers": 0} | changes
    return build_data(DataConfig(**values), seed=0).splits["train"]


@pytest.fixture(scope="module")
def photos():
    return drawn()


def test_a_scene_is_the_same_every_time_and_in_every_process(photos):
    record = photos.records[5]
    first = photos.catalog.load(record)
    again = pickle.loads(pickle.dumps(drawn().catalog)).load(record)
    np.testing.assert_array_equal(first, again)
    assert first.shape == (SIZE, SIZE, 3)
    assert first.dtype == np.uint8
    assert np.abs(first.astype(int) - photos.catalog.load(photos.records[6])).mean() > 10


def test_the_object_covers_a_twentieth_anywhere(photos):
    boxes = np.array([photos.catalog.annotate(record)[0] for record in photos.records])
    sides = (boxes[:, 2:] - boxes[:, :2]).max(axis=1)
    np.testing.assert_allclose(sides**2 / SIZE**2, AREA, rtol=0.05)  # the cut is of whole pixels
    assert boxes.min() >= 0
    assert boxes.max() <= SIZE
    centres = (boxes[:, :2] + boxes[:, 2:]) / (2 * SIZE)
    reach = (1.0 - AREA**0.5 * (1 + 2 * MARGIN)) / 2
    # even over the places where its patch fits: mean 0.5, deviation of a uniform distribution
    np.testing.assert_allclose(centres.mean(axis=0), 0.5, atol=4 * reach / (3 * len(boxes)) ** 0.5)
    np.testing.assert_allclose(centres.std(axis=0), reach / 3**0.5, rtol=0.25)


def test_the_box_and_the_part_lie_on_what_the_photo_shows(photos):
    """Inside its box the scene is the photo, enlarged or averaged down."""
    for record in photos.records[:6]:
        plain = photos.catalog.load.__self__.catalog
        photo, (box, parts) = plain.load(record), plain.annotate(record)
        placed, moved = photos.catalog.annotate(record)
        x0, y0, x1, y1 = (round(value) for value in placed)
        shown = photos.catalog.load(record)[y0:y1, x0:x1]
        cut = photo[round(box[1]) : round(box[3]), round(box[0]) : round(box[2])]
        expected = cv2.resize(cut, shown.shape[1::-1], interpolation=cv2.INTER_AREA)
        assert np.abs(shown.astype(int) - expected).mean() < 12  # a fraction of a pixel lies between
        share = [(parts[0][i] - box[i]) / (box[i + 2] - box[i]) for i in (0, 1)]
        again = [(moved[0][i] - placed[i]) / (placed[i + 2] - placed[i]) for i in (0, 1)]
        assert again == pytest.approx(share)
        assert moved[0][2] == parts[0][2]


def test_distractors_do_not_touch_the_object(photos, monkeypatch):
    pasted = []
    real = scene.paste
    monkeypatch.setattr(
        scene,
        "paste",
        lambda picture, patch, corner: pasted.append((len(patch), corner)) or real(picture, patch, corner),
    )
    for record in photos.records[:12]:
        pasted.clear()
        photos.catalog.load(record)
        *others, (side, (x, y)) = pasted
        assert NUM_DISTRACTORS[0] <= len(others) <= NUM_DISTRACTORS[1]
        assert side == round(AREA**0.5 * SIZE * (1 + 2 * MARGIN))
        for same_side, (left, top) in others:
            assert same_side == side
            assert abs(left - x) >= side or abs(top - y) >= side
            assert min(left, top) >= 0
            assert max(left, top) + side <= SIZE


def test_edges_fade():
    picture, patch = np.zeros((60, 60, 3), np.uint8), np.full((28, 28, 3), 200, np.uint8)
    scene.paste(picture, patch, (10, 20))
    width = round(28 * MARGIN / (1 + 2 * MARGIN))
    assert (picture[20 + width : 48 - width, 10 + width : 38 - width] == 200).all()
    row = picture[34, 10 : 10 + width + 1, 0].astype(int)
    assert (np.diff(row) > 0).all()
    assert row[0] < 20
    assert picture[:20].max() == 0


def test_a_window_beyond_the_border_is_mirrored():
    photo = np.arange(12).reshape(3, 4)
    np.testing.assert_array_equal(
        scene.window(photo, -2, 1, 4), [[5, 4, 4, 5], [9, 8, 8, 9], [9, 8, 8, 9], [5, 4, 4, 5]]
    )


@pytest.mark.parametrize(
    ("box", "strip"),
    [
        ((10, 5, 20, 25), (20 + 1, 0, 60, 30)),
        ((40, 5, 55, 25), (0, 0, 40, 30)),
        ((0, 20, 60, 30), (0, 0, 60, 20)),
        ((0, 0, 59, 4), (0, 5, 60, 30)),
    ],
)
def test_the_widest_strip_beside_an_object(box, strip):
    assert scene.largest_beside(box, (30, 60)) == strip


def test_photos_of_an_official_data_set(tmp_path):
    """Distractors come from photos of the same split, so that nothing of a test photo is shown in training."""
    layouts.write_cub(tmp_path / "photos")
    data = build_data(DataConfig(dataset="cub200", root=tmp_path / "photos", scene_size=SIZE), seed=0)
    opened = []
    scenes = data.splits["train"].catalog.load.__self__
    read = scenes.catalog.load
    object.__setattr__(scenes.catalog, "load", lambda record: opened.append(record.name) or read(record))
    sample = data.splits["train"][(0, 0)]
    assert sample["image"].shape == (3, 448, 448)
    width, height = (sample["box"][2:] - sample["box"][:2]).tolist()
    assert max(width, height) / 2 == pytest.approx(AREA**0.5, abs=0.06)  # a random crop may enlarge it
    assert not set(opened) & {record.name for record in data.splits["test"].records}
    assert len(opened) > NUM_DISTRACTORS[0]


def test_a_tiny_object_in_a_large_photo_takes_no_more_memory():
    """Only what is pasted is enlarged, not the photo around it."""
    photo = np.zeros((400, 600, 3), np.uint8)
    photo[200:202, 300:302] = 255
    record = Record("far", 0, box_xyxy=(300.0, 200.0, 302.0, 202.0))
    other = Record("other", 0, box_xyxy=(0.0, 0.0, 100.0, 400.0))
    plain = Catalog("far", ["a"], [record, other], None, [], load=lambda _: photo)
    scenes = in_scenes(plain, 1024)
    shown = scenes.load(record)
    x0, y0, x1, y1 = scenes.annotate(record)[0]
    assert shown[round((y0 + y1) / 2), round((x0 + x1) / 2)].min() > 200


def test_that_a_small_source_blurs_scenes_is_said():
    for size, said in ((SIZE, False), (128, True)):
        config = DataConfig(dataset="synthetic", scene_size=SIZE, source_size=size)
        lines = describe_data(build_data(config, seed=0), config, "cpu")
        assert any(f"data.source_size={SIZE} keeps it" in line for line in lines) == said


class TestMistakes:
    def test_photos_without_boxes(self, tmp_path):
        for name in ("finch", "wren"):
            for i in range(6):
                layouts.write_photo(tmp_path / name / f"{i}.png", seed=i)
        with pytest.raises(
            DataError, match=r"data\.scene_size: scenes are made of photos whose object's box is known"
        ):
            build_data(DataConfig(dataset="folder", root=tmp_path, scene_size=512), seed=0)

    def test_a_scene_with_no_room(self, tiny):
        with pytest.raises(ConfigError, match=r"data\.scene_size: .*at least 256, got 100"):
            tiny(data__scene_size=100)
