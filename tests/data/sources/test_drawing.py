"""The built-in data set: deterministic, balanced, honest boxes, and a detail that only a close look shows."""

import cv2
import numpy as np
import pytest

from racnn.data.sources import drawing as synthetic
from racnn.data.sources.drawing import SPECIES, draw


@pytest.fixture(scope="module")
def drawings() -> list[synthetic.Drawing]:
    return [draw(seed=0, index=index) for index in range(200)]


@pytest.fixture(scope="module", params=range(4), ids=lambda pair: SPECIES[2 * pair])
def look_alikes(request) -> list[tuple[synthetic.Drawing, synthetic.Drawing]]:
    """The same photos drawn with either species of one pair."""
    labels = (2 * request.param, 2 * request.param + 1)
    return [tuple(synthetic._draw_as(k, seed=3, index=i, size=192) for k in labels) for i in range(24)]


def sides(boxes: np.ndarray) -> np.ndarray:
    """Longer side of boxes [n, 4]."""
    return (boxes[:, 2:] - boxes[:, :2]).max(axis=1)


def difference(pair: tuple[synthetic.Drawing, synthetic.Drawing], shrink: int = 1) -> np.ndarray:
    """What tells two drawings apart once `shrink` x `shrink` pixels are averaged, float64 [h, w, 3]."""
    size = pair[0].image.shape[0] // shrink
    first, second = (
        cv2.resize(d.image.astype(np.float64), (size, size), interpolation=cv2.INTER_AREA) for d in pair
    )
    return first - second


def test_same_arguments_give_the_same_drawing():
    first, again = draw(seed=5, index=7), draw(seed=5, index=7)
    np.testing.assert_array_equal(first.image, again.image)
    assert (first.label, first.bird_xyxy, first.part_xyxy) == (again.label, again.bird_xyxy, again.part_xyxy)


@pytest.mark.parametrize("other", [{"seed": 6, "index": 7}, {"seed": 5, "index": 15}])
def test_another_seed_or_index_gives_another_photo_of_the_species(other):
    first, second = draw(seed=5, index=7), draw(**other)
    assert first.label == second.label
    assert np.abs(first.image.astype(int) - second.image).mean() > 10


@pytest.mark.parametrize("size", [96, 192, 250])
def test_image_is_a_square_of_bytes_of_the_given_size(size):
    image = draw(seed=0, index=0, size=size).image
    assert image.shape == (size, size, 3)
    assert image.dtype == np.uint8


def test_size_does_not_move_the_bird():
    small, large = draw(seed=0, index=4, size=96), draw(seed=0, index=4, size=384)
    np.testing.assert_allclose(np.array(small.bird_xyxy) / 96, np.array(large.bird_xyxy) / 384, atol=0.02)


def test_labels_are_balanced(drawings):
    counts = np.bincount([d.label for d in drawings], minlength=len(SPECIES))
    assert len(SPECIES) == 8
    assert set(counts) == {25}


def test_bird_lies_in_the_photo_and_covers_a_quarter_to_half_of_its_side(drawings):
    birds = np.array([d.bird_xyxy for d in drawings])
    assert birds.min() >= 0
    assert birds.max() <= 192
    fractions = sides(birds) / 192
    assert 0.25 <= fractions.min() < 0.30
    assert 0.45 < fractions.max() <= 0.50


def test_part_lies_in_the_bird_and_is_about_a_tenth_of_it(drawings):
    birds, parts = (np.array([getattr(d, name) for d in drawings]) for name in ("bird_xyxy", "part_xyxy"))
    assert (parts[:, :2] >= birds[:, :2]).all()
    assert (parts[:, 2:] <= birds[:, 2:]).all()
    fractions = sides(parts) / sides(birds)
    assert fractions.min() > 0.08
    assert fractions.max() < 0.11


def test_bird_box_is_tight_around_the_polygons_that_are_painted():
    for index, pair in enumerate(synthetic._PAIRS):
        shapes, bird, _, _ = synthetic._pose(np.random.default_rng(index), pair, 192)
        canvas = np.zeros((192 * synthetic._SUPERSAMPLE,) * 2 + (3,), np.uint8)
        for points, _ in shapes:
            synthetic._fill(canvas, points, np.full(3, 255))
        rows, columns = (np.flatnonzero(canvas[..., 0].any(axis)) / synthetic._SUPERSAMPLE for axis in (1, 0))
        painted = (columns[0], rows[0], columns[-1], rows[-1])
        np.testing.assert_allclose(painted, bird, atol=1)


def test_every_arrangement_fills_half_of_the_disc_with_each_colour():
    x, y = np.meshgrid(np.linspace(-1, 1, 801), np.linspace(-1, 1, 801))
    disc = x**2 + y**2 < 1
    for name, first in synthetic._ARRANGEMENTS.items():
        assert (first(x, y) & disc).sum() / disc.sum() == pytest.approx(0.5, abs=0.003), name


def test_look_alikes_differ_in_the_telling_part_only(look_alikes):
    for pair in look_alikes:
        assert pair[0].bird_xyxy == pair[1].bird_xyxy
        assert pair[0].part_xyxy == pair[1].part_xyxy
        x_low, y_low, x_high, y_high = pair[0].part_xyxy
        rows, columns = np.nonzero(difference(pair).any(axis=2))
        assert columns.min() >= np.floor(x_low)
        assert columns.max() < np.ceil(x_high)
        assert rows.min() >= np.floor(y_low)
        assert rows.max() < np.ceil(y_high)


def test_look_alikes_have_the_same_mean_part_colour(look_alikes):
    areas = [np.pi / 4 * (d.part_xyxy[2] - d.part_xyxy[0]) ** 2 for d, _ in look_alikes]
    shifts = [difference(pair).sum(axis=(0, 1)) / area for pair, area in zip(look_alikes, areas, strict=True)]
    assert np.abs(shifts).max() < 16  # one small disc, whose few pixels round
    assert np.abs(np.mean(shifts, axis=0)).max() < 3  # no colour is favoured in the long run


def test_detail_is_plain_in_the_photo_and_mostly_gone_when_it_is_averaged_down(look_alikes):
    near = np.array([np.abs(difference(pair)).max() for pair in look_alikes])
    assert near.mean() > 100
    # Averaging shrinks the detail's energy by itself; 9 pixels of the same colour would have kept all of it.
    energy = [(difference(pair) ** 2).sum() for pair in look_alikes]
    averaged = [9 * (difference(pair, shrink=3) ** 2).sum() for pair in look_alikes]
    assert sum(averaged) < 0.5 * sum(energy)


def test_distractors_stay_off_the_bird():
    bird = (60.0, 70.0, 120.0, 140.0)
    canvas = np.zeros((192 * synthetic._SUPERSAMPLE,) * 2 + (3,), np.uint8)
    for seed in range(10):
        synthetic._scatter_distractors(np.random.default_rng(seed), canvas, 192, bird)
    left, top, right, bottom = (int(v * synthetic._SUPERSAMPLE) for v in bird)
    assert canvas.any()
    assert not canvas[top:bottom, left:right].any()
