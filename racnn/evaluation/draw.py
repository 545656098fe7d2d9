"""Tensors in, pictures out: boxes on a photo, the panel of one prediction, the preview of a training run.

Convention
    Arrays are uint8 [h, w, 3] in RGB (or [h, w] grey); tensors are [C, h, w], floats in [0, 1] or uint8. Boxes are
    (x0, y0, x1, y1) in the photo's own pixels with outer corners: the whole photo is (0, 0, w, h). A box is drawn
    inside its own pixels. Region s is the picture that scale s + 1 sees and has that scale's colour.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from PIL import Image, ImageDraw, ImageFont

if TYPE_CHECKING:
    from torch import Tensor

Color = tuple[int, int, int]
Pixels = tuple[int, int, int, int]  # x0, y0, x1, y1
Picture: TypeAlias = "np.ndarray | Tensor"
Boxes: TypeAlias = "Sequence[Sequence[float]] | np.ndarray | Tensor"
Answer = Sequence[tuple[str, float]]  # (class name, probability), the most probable first

# One colour per scale, told apart also by colour-blind readers and on green, brown and sky.
# From black over purple and orange to bright yellow, as light as high: matplotlib's "inferno" at every eighth.
HEAT = (
    *((0, 0, 4), (31, 12, 72), (85, 15, 109), (136, 34, 106), (186, 54, 85)),
    *((227, 89, 51), (249, 140, 10), (249, 201, 50), (252, 255, 164)),
)
SCALE_COLORS = ((38, 132, 255), (255, 176, 0), (236, 36, 122), (120, 94, 240), (0, 158, 115))

_INK, _QUIET, _TINT = (24, 28, 36), (108, 116, 130), (242, 244, 247)
_PAPER, _HALO = (255, 255, 255), (0, 0, 0)
_FUSED_COLOR: Color = (72, 88, 112)
_VIEW, _BORDER, _CAPTION, _ROW, _BAR, _GAP, _MARGIN = 236, 4, 26, 28, 24, 18, 20
_PHOTO_HEIGHT = _VIEW + 3 * _ROW  # the photo is as tall as a view and the answers below it
SMALL_BOX = 60  # pixels, beside which "scale 2" is too long a label: 2
_MIN_CELL, _MAX_CELL, _MIN_SIDE = 120, 600, 16
# The built-in font is ASCII only; for other names the first of these that the machine has.
_WIDE_FONTS = ("NotoSansCJK-Regular.ttc", "msyh.ttc", "PingFang.ttc", "Arial Unicode.ttf", "DejaVuSans.ttf")


def draw_boxes(
    photo: Picture,
    boxes_xyxy: Boxes,
    labels: Sequence[str] | None = None,
    colors: Sequence[Color] | None = None,
) -> Image.Image:
    """Draw boxes onto a copy of a photo, each line between two dark ones so that it shows on any ground.

    Lines and labels grow with the photo. A label that has no room is left out; it never covers another one.

    Args:
        photo: Array or tensor of any size, colour or grey.
        boxes_xyxy: Boxes in the photo's pixels; what lies outside is cut off, a box with NaN is not drawn.
        labels: One word per box, or None.
        colors: One colour per box; None is the colour of the scale that sees it, from scale 2 on.

    Returns:
        An RGB image of the photo's size.
    """
    image = to_image(photo)
    painter = ImageDraw.Draw(image)
    width = line_width(image.size)
    halo = max(1, width // 3)
    colors = [_scale_color(index + 1) for index in range(len(boxes_xyxy))] if colors is None else colors
    edges = {
        index: _inner_pixels(box, image.size)
        for index, box in enumerate(boxes_xyxy)
        if all(math.isfinite(float(value)) for value in box)
    }
    for index, (x0, y0, x1, y1) in edges.items():
        painter.rectangle((x0 - halo, y0 - halo, x1 + halo, y1 + halo), outline=_HALO, width=halo)
        inner = (x0 + width, y0 + width, x1 - width, y1 - width)
        if inner[0] + halo < inner[2] and inner[1] + halo < inner[3]:
            painter.rectangle(inner, outline=_HALO, width=halo)
        painter.rectangle((x0, y0, x1, y1), outline=colors[index], width=width)
    if labels is not None:
        taken: list[Pixels] = []
        for index, edge in edges.items():
            _draw_tag(image, edge, labels[index], colors[index], taken)
    return image


def heat(picture: Picture, cells: Any, strength: float = 0.65, most: float | None = None) -> Image.Image:
    """Lay a map over a picture: dark where it is 0, up to bright yellow at its highest cell.

    Args:
        picture: Picture of any size.
        cells: [h, w], array or tensor, at least 0; where all are 0 the picture stays as it is.
        strength: How much of the picture is covered at the highest cell.
        most: Value of the brightest cells; None: the highest.
    """
    image = to_image(picture)
    values = np.asarray(cells.detach().cpu() if hasattr(cells, "detach") else cells, np.float32)
    if float(values.max()) <= 0.0:
        return image
    peak = float(values.max()) if most is None else most
    small = Image.fromarray((values / peak).clip(0.0, 1.0))
    level = np.asarray(small.resize(image.size, Image.Resampling.BILINEAR))
    steps = np.linspace(0.0, 1.0, len(HEAT))
    color = np.stack([np.interp(level, steps, channel) for channel in zip(*HEAT, strict=True)], axis=-1)
    cover = 0.25 + (strength - 0.25) * level[..., None]
    mixed = (1.0 - cover) * np.asarray(image, np.float32) + cover * color
    return Image.fromarray(mixed.round().astype(np.uint8))


def line_width(size: tuple[int, int]) -> int:
    """Return how many pixels wide the lines are on a photo of this (w, h): at least 2, on a thin strip 1."""
    return 1 if min(size) < 64 else max(2, round(math.sqrt(size[0] * size[1]) / 130))


def panel(
    photo: Picture,
    boxes_xyxy: Boxes,
    views: Sequence[Picture],
    predictions: Sequence[Answer],
    fused: Answer | None = None,
    title: str | None = None,
) -> Image.Image:
    """Show one prediction: the photo with its nested boxes, what each scale saw and said, and the fused answer.

    Args:
        photo: The user's photo, of any size.
        boxes_xyxy: The composed regions in the photo's pixels. They belong to the last scales: two boxes beside
            three views are what scales 2 and 3 see.
        views: One picture per scale, from scale 1 on.
        predictions: Per scale, (class name, probability); the first three are shown.
        fused: The same of all scales together, or None.
        title: A line above, or None.

    Returns:
        An RGB image; its height depends on the title and on ``fused`` alone, its width on the photo's shape and on
        the number of views.

    Raises:
        ValueError: There are not as many predictions as views, or more boxes than views.
    """
    if len(views) != len(predictions) or len(boxes_xyxy) > len(views):
        raise ValueError(
            f"expected one prediction per view and at most one box, got {len(views)} views, "
            f"{len(predictions)} predictions and {len(boxes_xyxy)} boxes"
        )
    shown = _photo_with_boxes(to_image(photo), boxes_xyxy, len(views))
    cell = max(shown.width, _MIN_CELL)
    top = _MARGIN + (40 if title else 0)
    bottom = top + _CAPTION + _PHOTO_HEIGHT
    right = _MARGIN + cell + len(views) * (_GAP + _VIEW)
    band = _MARGIN + _ROW + 12 if fused else 0
    canvas = Image.new("RGB", (right + _MARGIN, bottom + band + _MARGIN), _PAPER)
    painter = ImageDraw.Draw(canvas)
    if title:
        _text(painter, (_MARGIN, _MARGIN + 10), title, right - _MARGIN, 22, _INK)
    _text(painter, (_MARGIN, top + 10), "photo", cell, 15, _QUIET)
    _place(canvas, shown, (_MARGIN, top + _CAPTION, cell, _PHOTO_HEIGHT))
    for index, (view, answer) in enumerate(zip(views, predictions, strict=True)):
        left = _MARGIN + cell + _GAP + index * (_VIEW + _GAP)
        _draw_scale(canvas, (left, top), index, view, answer)
    if fused:
        _draw_fused(painter, (_MARGIN, bottom + _MARGIN, right, bottom + band), fused)
    return canvas


def preview(
    photos: Sequence[Picture] | Tensor,
    boxes_xyxy: Sequence[Tensor],
    views: Sequence[Tensor | Sequence[Picture]],
    tile: int = 128,
) -> np.ndarray:
    """Tile a few photos for TensorBoard: one row per photo, its boxes on it and beside it what the boxes hold.

    Args:
        photos: N pictures, scale 1.
        boxes_xyxy: Per region [N, 4] in the photos' pixels, the first is what scale 2 sees.
        views: Per region N pictures, the first are what scale 2 sees.
        tile: Side of a tile in pixels.

    Returns:
        uint8 [h, w, 3], for ``add_image(..., dataformats="HWC")``.
    """
    gap = 4
    size = (gap + (1 + len(views)) * (tile + gap), gap + len(photos) * (tile + gap))
    canvas = Image.new("RGB", size, _PAPER)
    for row, photo in enumerate(photos):
        image, sides = _fit_inside(to_image(photo), tile, tile)
        boxes = [_scaled(boxes[row], sides) for boxes in boxes_xyxy]
        y = gap + row * (tile + gap)
        _place(canvas, draw_boxes(np.asarray(image), boxes), (gap, y, tile, tile))
        for index, pictures in enumerate(views):
            x = gap + (index + 1) * (tile + gap)
            canvas.paste(_framed(pictures[row], tile, 2, _scale_color(index + 1)), (x, y))
    return np.array(canvas)


def to_image(picture: Picture | Image.Image) -> Image.Image:
    """Return an RGB image of its own from an array [h, w(, c)], a tensor [(c, )h, w] or an image."""
    if isinstance(picture, Image.Image):
        return picture.convert("RGB").copy()
    if isinstance(picture, np.ndarray):
        array = picture
    else:
        tensor = picture.detach().cpu()
        array = (tensor.float() if tensor.is_floating_point() else tensor).numpy()
        array = np.moveaxis(array, 0, -1) if array.ndim == 3 else array
    if np.issubdtype(array.dtype, np.floating):
        array = np.rint(np.nan_to_num(array).clip(0.0, 1.0) * 255.0).astype(np.uint8)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    return Image.fromarray(np.ascontiguousarray(array)).convert("RGB").copy()


def _scale_color(index: int) -> Color:
    return SCALE_COLORS[index % len(SCALE_COLORS)]


def _inner_pixels(box: Sequence[float], size: tuple[int, int]) -> Pixels:
    """Return the first and last pixel columns and rows of a box with outer corners, inside the photo."""
    x0, y0, x1, y1 = (round(float(value)) for value in box)
    left, top = min(max(x0, 0), size[0] - 1), min(max(y0, 0), size[1] - 1)
    return left, top, max(left, min(x1, size[0]) - 1), max(top, min(y1, size[1]) - 1)


def _draw_tag(image: Image.Image, edge: Pixels, label: str, color: Color, taken: list[Pixels]) -> None:
    """Write a label on its colour at the first corner of its box that is free."""
    painter, width = ImageDraw.Draw(image), line_width(image.size)
    font_size = 8 + 3 * width
    font, text = _font(font_size, label.isascii()), _clean(label)
    w, h = math.ceil(font.getlength(text)) + 2 * width + 4, font_size + 2 * width
    x0, y0, x1, y1 = edge
    outside = [(x0, y0 - h), (x0, y1 + 1), (x1 + 1 - w, y0 - h), (x1 + 1 - w, y1 + 1)]
    inside = [(x0, y0), (x0, y1 + 1 - h), (x1 + 1 - w, y0), (x1 + 1 - w, y1 + 1 - h)]
    for x, y in outside + inside:
        free = all(x >= b[2] or b[0] >= x + w or y >= b[3] or b[1] >= y + h for b in taken)
        if x >= 0 and y >= 0 and x + w <= image.width and y + h <= image.height and free:
            painter.rectangle((x, y, x + w - 1, y + h - 1), fill=color)
            light = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2]
            ink = _HALO if light > 140 else _PAPER
            painter.text((x + w / 2, y + h / 2), text, ink, font, anchor="mm")
            taken.append((x, y, x + w, y + h))
            return


def _photo_with_boxes(photo: Image.Image, boxes: Boxes, scales: int) -> Image.Image:
    """Scale the photo first and draw then, so that the lines look alike on a photo of any size."""
    image, sides = _fit_inside(photo, _MAX_CELL, _PHOTO_HEIGHT)
    numbers = range(scales - len(boxes), scales)
    scaled = [_scaled(box, sides) for box in boxes]
    small = any(min(box[2] - box[0], box[3] - box[1]) < SMALL_BOX for box in scaled)
    return draw_boxes(
        np.asarray(image),
        scaled,
        [f"{'' if small else 'scale '}{number + 1}" for number in numbers],
        [_scale_color(number) for number in numbers],
    )


def _draw_scale(canvas: Image.Image, at: tuple[int, int], index: int, view: Picture, answer: Answer) -> None:
    """Draw the column of one scale: caption, framed view, answers."""
    painter = ImageDraw.Draw(canvas)
    color = _scale_color(index)
    x, y = at
    painter.rectangle((x, y + 4, x + 11, y + 15), fill=color)
    _text(painter, (x + 19, y + 10), f"scale {index + 1}", _VIEW - 19, 15, _INK)
    canvas.paste(_framed(view, _VIEW, _BORDER, color), (x, y + _CAPTION))
    for row, (name, prob) in enumerate(answer[:3]):
        top = y + _CAPTION + _VIEW + row * _ROW + (_ROW - _BAR)
        _draw_bar(painter, (x, top, x + _VIEW, top + _BAR), name, prob, color, first=row == 0)


def _draw_fused(painter: ImageDraw.ImageDraw, band: Pixels, fused: Answer) -> None:
    """Draw the answer of all scales together across the whole width."""
    x0, y0, x1, y1 = band
    middle = (y0 + y1) // 2
    painter.rectangle((x0, y0 - 6, x1 - 1, y1 + 6), fill=_TINT)
    painter.rectangle((x0, y0 - 6, x0 + 3, y1 + 6), fill=_FUSED_COLOR)
    _text(painter, (x0 + 14, middle), "fused", 60, 16, _INK)
    left, shown = x0 + 74, fused[: 3 if x1 - x0 > 700 else 2]
    width = (x1 - 10 - left - (len(shown) - 1) * 12) // len(shown)
    for index, (name, prob) in enumerate(shown):
        x = left + index * (width + 12)
        box = (x, middle - _BAR // 2, x + width, middle - _BAR // 2 + _BAR)
        _draw_bar(painter, box, name, prob, _FUSED_COLOR, first=index == 0, track=_PAPER)


def _draw_bar(
    painter: ImageDraw.ImageDraw,
    box: Pixels,
    name: str,
    prob: float,
    color: Color,
    *,
    first: bool,
    track: Color = _TINT,
) -> None:
    """Draw one answer: a bar as long as its probability, the name and the percents on it."""
    x0, y0, x1, y1 = box
    painter.rectangle((x0, y0, x1 - 1, y1 - 1), fill=track)
    length = round((x1 - x0) * min(max(prob, 0.0), 1.0))
    if length > 0:
        share = 0.42 if first else 0.24
        r, g, b = (round(share * a + (1 - share) * b) for a, b in zip(color, track, strict=True))
        painter.rectangle((x0, y0, x0 + length - 1, y1 - 1), fill=(r, g, b))
        painter.rectangle((x0, y1 - 3, x0 + length - 1, y1 - 1), fill=color)
    percent, ink = f"{100 * prob:.0f} %" if prob >= 0.01 else "< 1 %", _INK if first else _QUIET
    font = _font(14, True)
    room = math.ceil(font.getlength("100 %")) + 8
    painter.text((x1 - 6, (y0 + y1) / 2 - 1), percent, ink, font, anchor="rm")
    _text(painter, (x0 + 6, (y0 + y1) / 2 - 1), name, x1 - x0 - room - 10, 14, ink)


def _framed(view: Picture, side: int, border: int, color: Color) -> Image.Image:
    frame = Image.new("RGB", (side, side), color)
    inner = side - 2 * border
    image, _ = _fit_inside(to_image(view), inner, inner)
    _place(frame, image, (border, border, inner, inner))
    return frame


def _fit_inside(image: Image.Image, width: int, height: int) -> tuple[Image.Image, tuple[float, float]]:
    """Scale to fit, and return the two factors; a very thin image keeps a side that can be seen."""
    factor = min(width / image.width, height / image.height)
    width = min(width, max(_MIN_SIDE, round(image.width * factor)))
    height = min(height, max(_MIN_SIDE, round(image.height * factor)))
    sampling = Image.Resampling.LANCZOS if factor < 1 else Image.Resampling.BICUBIC
    return image.resize((width, height), sampling), (width / image.width, height / image.height)


def _scaled(box: Sequence[float] | Tensor, factors: tuple[float, float]) -> list[float]:
    return [float(value) * factors[index % 2] for index, value in enumerate(box)]


def _place(canvas: Image.Image, image: Image.Image, cell: tuple[int, int, int, int]) -> None:
    """Paste in the middle of a cell (x, y, w, h), on grey where the cell is larger."""
    x, y, w, h = cell
    if image.size != (w, h):
        canvas.paste(_TINT, (x, y, x + w, y + h))
    canvas.paste(image, (x + (w - image.width) // 2, y + (h - image.height) // 2))


def _text(
    painter: ImageDraw.ImageDraw, at: tuple[float, float], text: str, width: float, size: int, color: Color
) -> None:
    """Write one line from ``at`` (left, middle) that is never wider than ``width``: smaller first, then cut off."""
    text = _clean(text)
    for smaller in range(size, size - 3, -1):
        font = _font(smaller, text.isascii())
        if font.getlength(text) <= width:
            break
    else:
        while text and font.getlength(text.rstrip() + "...") > width:
            text = text[:-1]
        text = text.rstrip() + "..."
    painter.text(at, text, color, font, anchor="lm")


def _clean(text: str) -> str:
    """Return the text on one line, composed, without control characters."""
    words = unicodedata.normalize("NFC", text).split()
    return "".join(c for c in " ".join(words) if unicodedata.category(c) != "Cc")


@lru_cache
def _font(size: int, ascii_only: bool) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    for name in () if ascii_only else _WIDE_FONTS:
        try:
            return ImageFont.truetype(name, size)
        except OSError:
            continue
    return ImageFont.load_default(size=size)
