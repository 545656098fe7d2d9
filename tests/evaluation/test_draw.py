"""Boxes at the right pixels, panels that hold whatever they are given."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from racnn.evaluation import draw as viz

GREY = (128, 128, 128)
LONG = "Northern Greater Short-tailed Black-footed Albatross of the Western Hemisphere"
ANSWER = [("Black footed Albatross", 0.7), ("Laysan Albatross", 0.2), ("Sooty Albatross", 0.001)]


def _photo(height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), 128, np.uint8)


def _view(side: int = 32) -> Tensor:
    return torch.rand(3, side, side, generator=torch.Generator().manual_seed(0))


def _columns_of(image: Image.Image, color: tuple[int, int, int]) -> tuple[int, int, int, int]:
    """Return the outer corners of everything in exactly this colour."""
    rows, columns = np.nonzero((np.asarray(image) == color).all(axis=-1))
    return int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1


class TestDrawBoxes:
    @pytest.mark.parametrize(
        ("box", "drawn"),
        [
            ((30, 20, 130, 60), (30, 20, 130, 60)),
            ((0, 0, 160, 100), (0, 0, 160, 100)),
            ((-50, 10, 40, 900), (0, 10, 40, 100)),  # what lies outside is cut off
        ],
    )
    def test_line_fills_the_box_to_its_outer_corners(self, box: tuple, drawn: tuple) -> None:
        image = viz.draw_boxes(_photo(100, 160), [box], colors=[(255, 0, 0)])
        assert _columns_of(image, (255, 0, 0)) == drawn

    def test_line_lies_between_dark_ones_and_leaves_the_rest(self) -> None:
        photo = _photo(100, 160)
        image = np.asarray(viz.draw_boxes(photo, [(30, 20, 130, 60)], colors=[(255, 0, 0)]))
        width = viz.line_width((160, 100))
        row = [tuple(int(v) for v in pixel) for pixel in image[40]]  # through the middle, from left to right
        assert row[28] == GREY
        assert row[29] == (0, 0, 0)
        assert row[30 : 30 + width] == [(255, 0, 0)] * width
        assert row[30 + width] == (0, 0, 0)
        assert row[30 + width + 1] == row[80] == row[131] == GREY
        assert (photo == 128).all(), "the photo itself was changed"

    def test_default_colours_are_those_of_the_scales_that_see_the_boxes(self) -> None:
        image = viz.draw_boxes(_photo(100, 160), torch.tensor([[10.0, 10, 90, 90], [100, 20, 150, 60]]))
        assert _columns_of(image, viz.SCALE_COLORS[1]) == (10, 10, 90, 90)
        assert _columns_of(image, viz.SCALE_COLORS[2]) == (100, 20, 150, 60)

    def test_an_unknown_box_is_not_drawn_and_keeps_its_colour(self) -> None:
        boxes = [(math.nan,) * 4, (10, 10, 60, 60)]
        image = viz.draw_boxes(_photo(100, 100), boxes, ["a", "b"], [(255, 0, 0), (0, 255, 0)])
        pixels = np.asarray(image).reshape(-1, 3)
        assert not (pixels == (255, 0, 0)).all(axis=1).any()
        assert (pixels == (0, 255, 0)).all(axis=1).any()

    def test_lines_grow_with_the_photo(self) -> None:
        assert viz.line_width((300, 1)) == 1
        assert viz.line_width((128, 128)) == 2
        assert viz.line_width((4000, 3000)) > 3 * viz.line_width((800, 600))

    def test_labels_are_written_beside_the_box_and_not_on_each_other(self) -> None:
        boxes = [(60, 60, 240, 240), (60, 60, 180, 180)]
        colors = [(255, 0, 0), (0, 255, 0)]
        without = np.asarray(viz.draw_boxes(_photo(300, 300), boxes, None, colors))
        image = np.asarray(viz.draw_boxes(_photo(300, 300), boxes, ["scale 2", "scale 3"], colors))
        for color in colors:
            assert (image == color).all(axis=-1).sum() > (without == color).all(axis=-1).sum() + 100

    def test_a_label_without_room_is_left_out(self) -> None:
        boxes = [(1, 0, 9, 1)]
        with_label = viz.draw_boxes(_photo(1, 10), boxes, ["a long word"])
        np.testing.assert_array_equal(
            np.asarray(with_label), np.asarray(viz.draw_boxes(_photo(1, 10), boxes))
        )

    @pytest.mark.parametrize(
        "photo",
        [
            np.full((40, 60), 128, np.uint8),
            np.full((40, 60, 1), 128, np.uint8),
            np.full((40, 60, 4), 128, np.uint8),
            np.full((40, 60, 3), 128 / 255),
            torch.full((3, 40, 60), 128, dtype=torch.uint8),
            torch.full((1, 40, 60), 128 / 255),
            torch.full((40, 60), 128 / 255),
            torch.full((3, 40, 60), 128 / 255, requires_grad=True),
        ],
    )
    def test_takes_arrays_and_tensors_colour_and_grey(self, photo: viz.Picture) -> None:
        image = viz.draw_boxes(photo, [])
        assert image.size == (60, 40)
        np.testing.assert_array_equal(np.asarray(image), _photo(40, 60))


class TestPanel:
    @pytest.mark.parametrize("scales", [1, 2, 3, 4, 5])
    @pytest.mark.parametrize("size", [(300, 400), (400, 300), (1, 300), (300, 1), (2000, 1500)])
    def test_height_depends_on_what_is_shown_alone(self, scales: int, size: tuple[int, int]) -> None:
        boxes = [(0, 0, size[1], size[0])] * (scales - 1)
        shown = viz.panel(_photo(*size), boxes, [_view()] * scales, [ANSWER] * scales, ANSWER, "a title")
        assert shown.height == viz.panel(_photo(9, 9), [], [_view()], [ANSWER], ANSWER, "another").height
        assert shown.mode == "RGB"
        assert 350 < shown.width < 2100

    def test_title_and_fused_answer_add_their_rows(self) -> None:
        def height(fused: list[tuple[str, float]] | None, title: str | None) -> int:
            return viz.panel(_photo(30, 40), [], [_view()], [ANSWER], fused, title).height

        assert height(None, None) < height(None, "a title") < height(ANSWER, "a title")

    def test_each_view_adds_the_same_width(self) -> None:
        widths = [viz.panel(_photo(30, 40), [], [_view()] * s, [ANSWER] * s).width for s in (1, 2, 3, 4)]
        assert len(set(np.diff(widths))) == 1

    def test_views_are_framed_in_the_colours_of_their_scales_and_drawn_as_they_are(self) -> None:
        views = [torch.full((3, 20, 20), value) for value in (0.2, 0.6, 0.8)]
        shown = np.asarray(viz.panel(_photo(30, 40), [], views, [[("a", 0.0)]] * 3))
        left = 0
        for view, color in zip(views, viz.SCALE_COLORS, strict=False):
            x0, _, x1, y1 = _columns_of(Image.fromarray(shown), color)
            assert x0 > left
            assert (shown[y1 - 30, (x0 + x1) // 2] == round(float(view[0, 0, 0]) * 255)).all()
            left = x1

    def test_boxes_belong_to_the_last_scales(self) -> None:
        size = (320, 480)  # the photo's own height in the panel, so that nothing is scaled
        boxes = [(40, 50, 400, 300), (200, 60, 300, 180)]
        views = [np.zeros((20, 20, 3), np.uint8)] * 3
        shown = viz.panel(_photo(*size), boxes, views, [[("a", 0.0)]] * 3)
        photo = shown.crop((20, 46, 20 + 480, 46 + 320))
        assert photo.getpixel((0, 0)) == GREY
        assert photo.getpixel((40, 200)) == photo.getpixel((399, 200)) == viz.SCALE_COLORS[1]
        assert photo.getpixel((200, 150)) == photo.getpixel((299, 150)) == viz.SCALE_COLORS[2]

    def test_the_box_of_a_large_photo_is_scaled_with_it(self) -> None:
        def shown(factor: int) -> Image.Image:
            box = [factor * value for value in (100, 60, 300, 180)]
            return viz.panel(_photo(320 * factor, 480 * factor), [box], [_view()], [[("a", 0.0)]])

        np.testing.assert_array_equal(np.asarray(shown(1)), np.asarray(shown(5)))

    def test_bar_is_as_long_as_the_probability(self) -> None:
        def pixels(prob: float) -> int:
            shown = np.asarray(viz.panel(_photo(30, 40), [], [np.zeros((9, 9, 3), np.uint8)], [[("", prob)]]))
            return int((shown == viz.SCALE_COLORS[0]).all(axis=-1).sum())

        none, half, full = pixels(0.0), pixels(0.5), pixels(1.0)
        assert 2 * (half - none) == full - none > 0

    @pytest.mark.parametrize(
        "name", [LONG, "W" * 500, "", "two\nlines\x00", "Éléphant à la crème " * 5, "黑脚信天翁" * 20]
    )
    def test_no_name_leaves_its_row(self, name: str) -> None:
        def shown(text: str) -> np.ndarray:
            answer = [(text, 0.0)] * 3
            return np.asarray(viz.panel(_photo(30, 400), [], [_view()], [answer], answer, text or None))

        with_name, plain = shown(name), shown("i" if name else "")
        assert with_name.shape == plain.shape
        np.testing.assert_array_equal(with_name[:, :20], plain[:, :20])
        np.testing.assert_array_equal(with_name[:, -20:], plain[:, -20:])

    def test_a_name_that_nearly_fits_is_written_smaller_not_cut(self) -> None:
        name = "Black footed Albatross"
        room = ImageFont.load_default(size=13).getlength(name)
        image, expected = (Image.new("RGB", (300, 40), (255, 255, 255)) for _ in range(2))
        viz._text(ImageDraw.Draw(image), (10, 20), name, room, 14, (0, 0, 0))
        viz._text(ImageDraw.Draw(expected), (10, 20), name, 1000, 13, (0, 0, 0))
        assert image.tobytes() == expected.tobytes()

    def test_fewer_answers_make_a_panel_that_is_no_higher(self) -> None:
        full, two, one = (
            viz.panel(_photo(30, 40), [], [_view()], [ANSWER[:n]], ANSWER[:n]) for n in (3, 2, 1)
        )
        assert full.height >= two.height >= one.height
        assert full.width == two.width == one.width

    def test_counts_that_do_not_fit_are_refused(self) -> None:
        with pytest.raises(ValueError, match="one prediction per view"):
            viz.panel(_photo(30, 40), [], [_view()] * 2, [ANSWER])
        with pytest.raises(ValueError, match="at most one box"):
            viz.panel(_photo(30, 40), [(0, 0, 9, 9)] * 2, [_view()], [ANSWER])


class TestPreview:
    def test_is_a_tile_per_photo_and_region(self) -> None:
        photos = torch.rand(5, 3, 64, 64)
        boxes = [
            torch.tensor([[8.0, 8, 56, 56]]).expand(5, 4),
            torch.tensor([[16.0, 16, 40, 40]]).expand(5, 4),
        ]
        shown = viz.preview(photos, boxes, [torch.rand(5, 3, 24, 24)] * 2, tile=80)
        assert shown.shape == (4 + 5 * 84, 4 + 3 * 84, 3)
        assert shown.dtype == np.uint8

    def test_box_and_view_of_a_region_share_the_colour_of_its_scale(self) -> None:
        photos, views = torch.full((1, 3, 64, 64), 0.5), [torch.zeros(1, 3, 9, 9)]
        shown = viz.preview(photos, [torch.tensor([[16.0, 16, 48, 32]])], views, tile=128)
        color = viz.SCALE_COLORS[1]
        assert _columns_of(Image.fromarray(shown[:, :132]), color) == (4 + 32, 4 + 32, 4 + 96, 4 + 64)
        assert _columns_of(Image.fromarray(shown[:, 132:]), color) == (4, 4, 132, 132)

    def test_without_regions_shows_the_photos(self) -> None:
        shown = viz.preview(torch.full((2, 3, 32, 48), 0.5, dtype=torch.bfloat16), [], [], tile=64)
        assert shown.shape == (4 + 2 * 68, 72, 3)
        assert (shown[36, 36] == 128).all()


def test_heat_is_brightest_where_the_map_is_highest() -> None:
    picture = np.full((60, 90, 3), 128, np.uint8)
    cells = torch.zeros(4, 6)
    cells[1, 4] = 2.0
    found = np.asarray(viz.heat(picture, cells)).astype(float)
    assert found.shape == (60, 90, 3)
    light = found.sum(axis=2)
    row, column = np.unravel_index(light.argmax(), light.shape)
    assert (row * 4 // 60, column * 6 // 90) == (1, 4)
    assert light[-1, 0] < 0.6 * light.max()
    assert np.array_equal(np.asarray(viz.heat(picture, torch.zeros(4, 6))), picture)
