"""The first and the last part of an exported graph: from photos to sources, and from regions to boxes in the photos' pixels.

What :class:`racnn.data.transforms.SourceTransform` does without random changes, and ``to_photo``, written as nodes: sides that
shrink are averaged as OpenCV's INTER_AREA does, then those that grow interpolated as INTER_LINEAR does, each to whole grey
levels. Sizes are known only when the graph runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from racnn.export.graph import Graph


@dataclass
class Axis:
    """How an axis of a photo becomes one of the source, as names of float64 scalars.

    Attributes:
        has: Pixels of the photo.
        becomes: Pixels that it is resized to, of which the source takes some.
        first: The first of these.
        shrinks: Bool, whether it becomes fewer.
    """

    has: str
    becomes: str
    first: str
    shrinks: str


def axes_of(graph: Graph, photos: str, side: int, resize: Literal["squash", "crop"]) -> tuple[Axis, Axis]:
    """Return what becomes of the rows and columns of photos [N, H, W, 3]."""
    shape = graph("Cast", graph("Shape", photos), to=_DOUBLE)
    has = [graph("Gather", shape, graph.constant(number, np.int64), axis=0) for number in (1, 2)]
    wanted = graph.constant(float(side), np.float64)
    becomes = [wanted, wanted]
    if resize == "crop":
        scale = graph("Div", wanted, graph("Min", *has))
        becomes = [graph("Round", graph("Mul", each, scale)) for each in has]
    two = graph.constant(2.0, np.float64)
    axes = []
    for each, to in zip(has, becomes, strict=True):
        first = graph("Floor", graph("Div", graph("Sub", to, wanted), two))
        axes.append(Axis(each, to, first, graph("Greater", each, to)))
    return axes[0], axes[1]


def sources_of(graph: Graph, photos: str, rows: Axis, columns: Axis, side: int) -> str:
    """Return sources [N, 3, S, S] in grey levels, float32, of photos uint8 [N, H, W, 3]."""
    image = photos
    blocks = _Blocks(graph, rows, columns)
    for axis, number in ((columns, 2), (rows, 1)):  # in OpenCV's order
        image = graph.either(
            axis.shrinks,
            lambda inner, axis=axis, number=number: _averaged(inner, image, axis, number, side, blocks.even),  # type: ignore[misc]  # noqa: B023
            lambda inner: inner("Cast", image, to=_FLOAT),  # noqa: B023
        )
    image = blocks.rounded(image)
    image = graph.either(
        graph("And", rows.shrinks, columns.shrinks),
        lambda inner: image,
        lambda inner: _interpolated(inner, image, rows, columns, side),
    )
    return graph("Transpose", image, perm=[0, 3, 1, 2])


def boxes_in_photo(
    graph: Graph, centres: Sequence[str], sides: Sequence[str], rows: Axis, columns: Axis, side: int
) -> str:
    """Return boxes (x0, y0, x1, y1), float32 [n, 4] in the photos' pixels, of regions of the source.

    Args:
        graph: That it is written to.
        centres: Names of their centres, [n, 1] across and down, in the frame of the source.
        sides: Names of their half sides, likewise.
        rows: Vertical axis of the photos.
        columns: Horizontal axis of the photos.
        side: Side of the source in pixels.
    """
    half = graph.floats(side / 2)
    ends = []
    for sign in ("Sub", "Add"):
        for centre, length, axis in zip(centres, sides, (columns, rows), strict=True):
            in_source = graph("Mul", graph("Add", graph(sign, centre, length), graph.floats(1.0)), half)
            moved = graph("Add", in_source, graph("Cast", axis.first, to=_FLOAT))
            ends.append(graph("Mul", moved, graph("Cast", graph("Div", axis.has, axis.becomes), to=_FLOAT)))
    return graph("Concat", *ends, axis=1)


TAPS = 32  # pixels of an axis that are added up one after another
_FLOAT, _DOUBLE, _INT64 = 1, 11, 7  # of onnx.TensorProto


class _Blocks:
    """Whether a photo shrinks by whole numbers: then OpenCV adds the pixels of each block up before it divides.

    Attributes:
        even: Bool; a side that does not shrink is one that shrinks by 1.
    """

    def __init__(self, graph: Graph, rows: Axis, columns: Axis) -> None:
        self.graph = graph
        one, zero = graph.constant(1.0, np.float64), graph.constant(0.0, np.float64)
        steps = [
            graph("Where", axis.shrinks, graph("Div", axis.has, axis.becomes), one)
            for axis in (rows, columns)
        ]
        self.even = graph("And", *(graph("Equal", graph("Mod", step, one, fmod=1), zero) for step in steps))
        two = graph.constant(2.0, np.float64)
        self.of_two = graph("And", *(graph("Equal", step, two) for step in steps))
        share = graph("Where", self.even, graph("Div", one, graph("Mul", *steps)), one)
        self.share = graph("Cast", share, to=_FLOAT)

    def rounded(self, sums: str) -> str:
        """Return whole grey levels of sums or means; half levels become even ones, but of blocks of two by two the higher ones."""
        graph = self.graph
        means = graph("Mul", sums, self.share)
        whole = graph.either(
            self.of_two,
            lambda inner: inner("Floor", inner("Add", means, inner.floats(0.5))),
            lambda inner: inner("Round", means),
        )
        return graph("Clip", whole, graph.floats(0.0), graph.floats(255.0))


def _averaged(graph: Graph, image: str, axis: Axis, number: int, side: int, even: str) -> str:
    """Return an image [N, H, W, 3] with the source's pixels on an axis: of what each covers the mean, or in even blocks the sum.

    Pixels are added up from the first to the last in float32, as OpenCV does, so that means half way between two grey levels
    are rounded alike; parts of a pixel below a thousandth are left out.
    """
    zero, one, little = (graph.constant(value, np.float64) for value in (0.0, 1.0, 1e-3))
    step = graph("Div", one, graph("Div", axis.becomes, axis.has))
    start = graph("Mul", _numbers(graph, axis, side), step)  # [S, 1], in pixels of the photo
    end = graph("Add", start, step)
    width = graph("Min", step, graph("Sub", axis.has, start))
    last = graph("Min", graph("Floor", end), graph("Sub", axis.has, one))
    first = graph("Min", graph("Ceil", start), last)  # of those that are covered from their beginning
    most = graph("ReduceMax", graph("Sub", last, first), keepdims=0)
    taps = graph("Range", graph.constant(-1.0, np.float64), graph("Add", most, one), one)
    pixels = graph("Add", first, taps)  # [S, K]
    before, after = graph("Sub", first, start), graph("Sub", end, last)
    parts = [
        graph("Where", graph("Greater", part, little), graph("Min", part, one, width), zero)
        for part in (before, after)
    ]
    covered = graph("Where", graph("Less", pixels, first), parts[0], one)
    covered = graph("Where", graph("Equal", pixels, last), parts[1], covered)
    covered = graph("Where", graph("Greater", pixels, last), zero, covered)
    mean = graph("Div", covered, width)
    weights = graph("Cast", graph("Where", even, covered, mean), to=_FLOAT)
    index = graph("Cast", graph("Max", graph("Min", pixels, graph("Sub", axis.has, one)), zero), to=_INT64)
    return graph.either(
        graph("LessOrEqual", most, graph.constant(TAPS - 2.0, np.float64)),
        lambda inner: _added_up(inner, image, index, weights, number, most),
        lambda inner: _added_up_at_once(inner, image, index, weights, number),
    )


def _added_up(graph: Graph, image: str, index: str, weights: str, number: int, most: str) -> str:
    """Return the sums over the pixels ``index`` [S, K] of an axis with their weights [S, K], at most TAPS, one after another."""

    def tap(inner: Graph, k: int) -> str:
        here = inner.constant(k, np.int64)
        pixels = inner(
            "Cast", inner("Gather", image, inner("Gather", index, here, axis=1), axis=number), to=_FLOAT
        )
        of_pixels = inner(
            "Unsqueeze",
            inner("Gather", weights, here, axis=1),
            inner.ints(*((1, 2) if number == 1 else (1,))),
        )
        if number == 2:
            of_pixels = inner("Mul", of_pixels, inner.constant([1.0, 1.0, 1.0], np.float32))  # as in _taps
        return inner("Mul", pixels, of_pixels)

    total = graph("Add", tap(graph, 0), tap(graph, 1))
    for k in range(2, TAPS):
        total = graph.either(
            graph("GreaterOrEqual", most, graph.constant(k - 1.0, np.float64)),
            lambda inner, k=k, total=total: inner("Add", total, tap(inner, k)),  # type: ignore[misc]
            lambda inner, total=total: total,  # type: ignore[misc]
        )
    return total


def _added_up_at_once(graph: Graph, image: str, index: str, weights: str, number: int) -> str:
    """Return the same of any number of pixels, at the cost of memory."""
    spread = graph(
        "Cast", graph("Gather", image, index, axis=number), to=_FLOAT
    )  # [N, S, K, W, 3] or [N, H, S, K, 3]
    products = graph(
        "Mul", spread, graph("Unsqueeze", weights, graph.ints(*((2, 3) if number == 1 else (2,))))
    )
    sums = graph("CumSum", products, graph.constant(number + 1, np.int64))
    return graph("Gather", sums, graph.constant(-1, np.int64), axis=number + 1)


def _interpolated(graph: Graph, image: str, rows: Axis, columns: Axis, side: int) -> str:
    """Return images [N, S, S, 3] of which each pixel lies between the four nearest, in OpenCV's arithmetic of whole numbers.

    Weights are parts of 2048. A row's sums lose their last four bits, a column's products 16, and the sum of these two. Sums
    are exact in float32, products in float64.
    """
    left, right, before, after = _taps(graph, columns, side, number=2)
    across = graph(
        "Floor",
        graph(
            "Add",
            graph("Mul", graph("Gather", image, left, axis=2), _shifted(graph, before, 4, _FLOAT)),
            graph("Mul", graph("Gather", image, right, axis=2), _shifted(graph, after, 4, _FLOAT)),
        ),
    )
    across = graph("Cast", across, to=_DOUBLE)
    above, below, before, after = _taps(graph, rows, side, number=1)
    ends = [
        graph("Floor", graph("Mul", graph("Gather", across, index, axis=1), _shifted(graph, weight, 16)))
        for index, weight in ((above, before), (below, after))
    ]
    total = graph("Cast", graph("Add", *ends), to=_FLOAT)
    return graph("Floor", graph("Mul", graph("Add", total, graph.floats(2.0)), graph.floats(0.25)))


def _taps(graph: Graph, axis: Axis, side: int, *, number: int) -> tuple[str, str, str, str]:
    """Return the two pixels [S] of an image that each of the source's lies between, and their weights, parts of 2048."""
    zero, half, one = (graph.constant(value, np.float64) for value in (0.0, 0.5, 1.0))
    wanted = graph.constant(float(side), np.float64)
    has = graph("Where", axis.shrinks, wanted, axis.has)  # of a side that was averaged before
    becomes = graph("Where", axis.shrinks, wanted, axis.becomes)
    first = graph("Where", axis.shrinks, zero, axis.first)
    index = graph("Add", graph.constant(np.arange(side), np.float64), first)
    place = graph("Sub", graph("Div", graph("Mul", graph("Add", index, half), has), becomes), half)
    last = graph("Sub", has, one)
    place = graph("Cast", graph("Cast", place, to=_FLOAT), to=_DOUBLE)  # as precise as OpenCV takes it
    if (
        number == 2
    ):  # beyond the edge OpenCV takes columns to be at it, but rows to lie between the edge and itself
        place = graph("Max", graph("Min", place, last), zero)
    low = graph("Floor", place)
    scale = graph.constant(2048.0, np.float64)
    part = graph(
        "Reshape", graph("Sub", place, low), graph.ints(side, 1, 1) if number == 1 else graph.ints(side, 1)
    )
    if number == 2:
        part = graph("Expand", part, graph.ints(side, 3))  # whole rows are multiplied faster than threes
    low, high = (graph("Max", graph("Min", each, last), zero) for each in (low, graph("Add", low, one)))
    before, after = (graph("Round", graph("Mul", each, scale)) for each in (graph("Sub", one, part), part))
    return graph("Cast", low, to=_INT64), graph("Cast", high, to=_INT64), before, after


def _shifted(graph: Graph, weights: str, bits: int, kind: int = _DOUBLE) -> str:
    """Return weights whose products lose some bits by rounding down."""
    return graph("Cast", graph("Mul", weights, graph.constant(2.0**-bits, np.float64)), to=kind)


def _numbers(graph: Graph, axis: Axis, side: int) -> str:
    """Return the numbers [S, 1] of the source's pixels among those that the axis is resized to."""
    return graph("Add", graph.constant(np.arange(side)[:, None], np.float64), axis.first)
