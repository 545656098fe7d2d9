"""Boxes and points follow the pixels, and a seed says everything about the random changes."""

import pickle

import numpy as np
import pytest

from racnn.data.transforms import SourceTransform
from racnn.sections import AugmentConfig

SHAPES = [(375, 500), (500, 333), (90, 260), (224, 224)]
SEEDS = range(25)
GEOMETRY = AugmentConfig(color=0.0)


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def to_pixels(in_frame, size):
    return (np.asarray(in_frame, np.float64) + 1) / 2 * size


@pytest.mark.parametrize("augment", [None, GEOMETRY], ids=["eval", "train"])
@pytest.mark.parametrize("resize", ["squash", "crop"])
@pytest.mark.parametrize("shape", SHAPES)
def test_box_and_point_follow_a_drawn_marker(shape, resize, augment):
    height, width = shape
    x_low, y_low = int(0.42 * width), int(0.35 * height)
    x_high, y_high = int(0.60 * width), int(0.66 * height)
    photo = np.zeros((height, width, 3), np.uint8)
    photo[y_low:y_high, x_low:x_high] = 255
    centre = ((x_low + x_high) / 2, (y_low + y_high) / 2, 1)
    transform = SourceTransform(224, resize, augment)
    seen = 0
    for seed in SEEDS:
        source, box, parts = transform(photo, (x_low, y_low, x_high, y_high), [centre], seed)
        expected = to_pixels(box, 224)
        if expected.min() < 1 or expected.max() > 223:
            continue  # the marker is cut off
        seen += 1
        share = source[..., 0] / 255.0
        columns, rows = share.max(0), share.max(1)
        # A pixel that is covered in part is grey, so the sums measure the marker to a fraction of a pixel.
        assert columns.sum() == pytest.approx(expected[2] - expected[0], abs=0.5)
        assert rows.sum() == pytest.approx(expected[3] - expected[1], abs=0.5)
        x = (columns * (np.arange(224) + 0.5)).sum() / columns.sum()
        y = (rows * (np.arange(224) + 0.5)).sum() / rows.sum()
        np.testing.assert_allclose(to_pixels(parts[0, :2], 224), (x, y), atol=0.25)
        np.testing.assert_allclose((box[:2] + box[2:]) / 2, parts[0, :2], atol=1e-5)
    assert seen >= 5


def test_flip_is_exact():
    photo = noise(40, 40)
    transform = SourceTransform(40, "squash", AugmentConfig(crop=1.0, color=0.0))
    flips = 0
    for seed in SEEDS:
        source, box, parts = transform(photo, (0, 4, 10, 20), [(30, 10, 1)], seed)
        if np.array_equal(source, photo):
            np.testing.assert_allclose(box, (-1.0, -0.8, -0.5, 0.0), atol=1e-6)
            np.testing.assert_allclose(parts, [(0.5, -0.5, 1)], atol=1e-6)
        else:
            flips += 1
            assert np.array_equal(source, photo[:, ::-1])
            np.testing.assert_allclose(box, (0.5, -0.8, 1.0, 0.0), atol=1e-6)
            np.testing.assert_allclose(parts, [(-0.5, -0.5, 1)], atol=1e-6)
    assert 5 <= flips <= 20


def test_random_crop_is_the_slice_its_box_says_and_reaches_every_offset():
    photo = noise(48, 60)
    transform = SourceTransform(42, "crop", AugmentConfig(crop=0.875, flip=False, color=0.0))
    tops, lefts = set(), set()
    for seed in range(200):
        source, box, _ = transform(photo, (0, 0, 60, 48), [], seed)
        left, top = (int(v) for v in np.rint(-to_pixels(box, 42)[:2]))
        assert np.array_equal(source, photo[top : top + 42, left : left + 42])
        tops.add(top)
        lefts.add(left)
    assert tops == set(range(7))
    assert lefts == set(range(19))


def test_crop_keeps_the_middle_and_never_clips_the_box():
    photo = noise(50, 150)
    source, box, parts = SourceTransform(50, "crop")(photo, (0, 0, 150, 50), [(0, 25, 1)], 0)
    assert np.array_equal(source, photo[:, 50:100])
    np.testing.assert_allclose(box, (-3, -1, 3, 1), atol=1e-6)
    np.testing.assert_allclose(parts, [(-3, 0, 1)], atol=1e-6)


def test_shrinking_averages_also_where_the_other_side_grows():
    stripes = np.zeros((16, 320, 3), np.uint8)
    stripes[:, ::4] = 200
    source, _, _ = SourceTransform(80)(stripes, None, [], 0)
    assert np.all(source == 50)


def test_missing_box_is_nan_and_invisible_parts_are_zero():
    for augment in (None, AugmentConfig()):
        _, box, parts = SourceTransform(32, "squash", augment)(
            noise(30, 40), None, [(9, 9, 0), (20, 15, 1)], 0
        )
        assert np.isnan(box).all()
        assert box.shape == (4,)
        assert np.array_equal(parts[0], (0, 0, 0))
        assert parts[1, 2] == 1
        _, _, none = SourceTransform(32, "squash", augment)(noise(30, 40), None, [], 0)
        assert none.shape == (0, 3)


@pytest.mark.parametrize("resize", ["squash", "crop"])
@pytest.mark.parametrize("shape", [(1, 1), (300, 1), (1, 300), (2, 3)])
@pytest.mark.parametrize("augment", [None, AugmentConfig()], ids=["eval", "train"])
def test_tiny_and_thin_photos_become_sources(shape, resize, augment):
    source, box, _ = SourceTransform(32, resize, augment)(noise(*shape), (0, 0, *shape[::-1]), [], 0)
    assert source.shape == (32, 32, 3)
    assert np.isfinite(box).all()


def test_seed_decides_and_survives_pickling():
    photo = noise(60, 80)
    transform = SourceTransform(32, "squash", AugmentConfig())
    first = transform(photo, (1, 2, 30, 40), [(5, 6, 1)], 7)
    transform(photo, None, [], 8)
    for again in (transform, pickle.loads(pickle.dumps(transform))):
        for a, b in zip(first, again(photo, (1, 2, 30, 40), [(5, 6, 1)], 7), strict=True):
            assert np.array_equal(a, b)
    assert len({transform(photo, None, [], seed)[0].tobytes() for seed in SEEDS}) == len(SEEDS)


def test_row_column_flip_and_colour_are_drawn_independently():
    photo = np.full((20, 20, 3), 100, np.uint8)
    transform = SourceTransform(20, "squash", AugmentConfig(crop=0.5, color=0.5))
    draws = []
    for seed in range(500):
        source, box, parts = transform(photo, (0, 0, 20, 20), [(0, 0, 1)], seed)
        flipped = parts[0, 0] > 0
        column = box[2] if flipped else -box[0]
        draws.append((column, box[1], flipped, source.mean()))
    correlation = np.corrcoef(np.array(draws, np.float64).T)
    assert np.abs(correlation - np.eye(4)).max() < 0.15


def test_colour_stays_within_its_strength_and_zero_changes_nothing():
    photo = np.full((32, 32, 3), 100, np.uint8)
    for seed in SEEDS:
        bright = SourceTransform(32, "squash", AugmentConfig(crop=1.0, color=0.2))(photo, None, [], seed)[0]
        assert bright.min() >= 79
        assert bright.max() <= 121
        same = SourceTransform(32, "squash", AugmentConfig(crop=1.0, color=0.0))(photo, None, [], seed)[0]
        assert np.array_equal(same, photo)
