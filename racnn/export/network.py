"""From a trained network to an ONNX model: each look traced by torch, with nodes by hand before, between and after.

What goes in is ``photos``, uint8 [N, H, W, 3] in RGB, upright, of any size; with early exit also ``stop``, the least probability
to stop at after each look but the last, float32 [L - 1], never by default. What comes out:

    probabilities       [N, C]          of all looks together, or of those that a photo was given
    look_1, ...         [N, C]          of each look by itself; 0 where a photo was not given it
    looks               [N]             how many looks a photo was given
    source              [N, 3, S, S]    the square that it looks at, uint8
    boxes               [N, L - 1, 4]   of the finer looks, (x0, y0, x1, y1) in pixels of the photo; NaN where not given
    view_1, ...         [n, 3, s, s]    what each look saw, in [0, 1]; of the n photos that were given it, in order
    why_1, ...          [n, h, w]       what speaks there for the answer rather than the second most probable class

Photos that need no further look are left out of the next ones, inside the graph.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from racnn.export.graph import OPSET, TYPES, Graph, Port
from racnn.export.photo import axes_of, boxes_in_photo, sources_of
from racnn.models.racnn.model import RACNN, RACNNOutput, ScaleOutput
from racnn.ops.crop import cut, zoom
from racnn.ops.regions import whole

NEVER = 2.0  # a probability to stop at that none reaches


class _Look(nn.Module):
    """One look: from what it cuts its view of, and where, to everything that later parts need."""

    def __init__(self, model: RACNN, scale: int, scales: int) -> None:
        super().__init__()
        self.model, self.scale = model, scale
        self.regions = scales - 1 if model.parallel else 0  # that the first look proposes

    def forward(
        self, image: Tensor, cut: Tensor, region: Tensor, query: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """Return logits, descriptor, features, the view as it is classified and in [0, 1], and where further looks go.

        That is, but of the last look, its proposal and the next region; where regions are parallel, of the first look its proposal and all
        of them.

        Args:
            image: [n, 3, h, w], the source, or with ``zoom_from`` 'parent' the view before.
            cut: [n, 3], or [n, 4], where the view lies in it.
            region: [n, 3], or [n, 4], where it lies in the source.
            query: [n, C], the descriptor of the look before, where it steers.
        """
        model, scale = self.model, self.scale
        parent = None
        if model.zoom_from == "parent" and scale > 1:
            parent = ScaleOutput(region, image, image, region, region, cut)
        if scale == 1 and (factor := _whole_factor(model, image.shape[-1])):
            view = _shrunk(image, factor)
        else:
            view = model.crop(scale, image, cut, parent=parent)
        found = model.forward_scale(scale, view, region, query=query)
        made: tuple[Tensor, ...] = (
            found.logits,
            found.descriptor,
            found.weighed,
            view,
            model.to_pixels(view),
        )
        if found.proposal is None:
            return made
        made = (*made, found.proposal, found.next_region)
        return (*made, *(model.propose(r, 1, found) for r in range(2, self.regions + 1)))


def _whole_factor(model: RACNN, source_size: int) -> int | None:
    """Return how many pixels of the source, a side, the first view has one for; None: no whole number, or another sampler than the zoom."""
    factor, rest = divmod(source_size, model.view_sizes[0])
    return factor if factor > 1 and not rest and model.antialias and model.sample is zoom else None


def _shrunk(image: Tensor, factor: int) -> Tensor:
    """Return images [n, 3, S, S] at a whole fraction of their size, as :func:`racnn.ops.crop.zoom` samples the whole image.

    There every sample has the same triangle, so that few products do.
    """
    taps = 2 * factor - factor % 2
    triangle = 1.0 - (torch.arange(taps) - (taps - 1) / 2).abs() / factor
    kernel = triangle[:, None] * triangle
    pad = (taps - factor) // 2
    ones = torch.ones(1, 1, *image.shape[2:])
    inside = F.conv2d(ones, kernel[None, None], stride=factor, padding=pad)  # less at the edge
    return F.conv2d(image, kernel.expand(3, 1, -1, -1), stride=factor, padding=pad, groups=3) / inside


class _Why(nn.Module):
    """What speaks at each cell of a look for one class rather than another."""

    def __init__(self, model: RACNN, scale: int) -> None:
        super().__init__()
        self.model, self.scale = model, scale

    def forward(self, features: Tensor, best: Tensor) -> Tensor:
        return self.model.difference(self.scale, features, best[:, 0], best[:, 1])


class _Fusion(nn.Module):
    def __init__(self, model: RACNN) -> None:
        super().__init__()
        self.model = model

    def forward(self, *descriptors: Tensor) -> Tensor:
        return self.model.fuse(descriptors)


@dataclass
class _Made:
    """What a look has made of the photos that were given it, as names in the graph.

    ``logits`` and ``descriptor`` become shorter as photos stop; ``index`` has the numbers of the photos that the rest is of.
    """

    logits: str
    descriptor: str
    features: str
    view: str
    pixels: str
    index: str
    proposal: str = ""


def build_onnx(
    model: RACNN,
    *,
    source_size: int,
    resize: Any,
    scales: int,
    fused: bool,
    pools: Sequence[Sequence[float]] | None,
    metadata: dict[str, str],
) -> onnx.ModelProto:
    """Return a network as an ONNX model, see above.

    Args:
        model: In evaluation mode, float32, on the CPU.
        source_size: Side S of the square source that photos are made to.
        resize: See :class:`racnn.data.transforms.SourceTransform`.
        scales: How many looks are trained.
        fused: Whether the fusion layer is.
        pools: Weights of the looks in the answers at every depth but the last, for early exit; None: there is none.
        metadata: Texts by name.
    """
    inputs: list[Port] = [Port("photos", "photos", "uint8", ["photos", "height", "width", 3])]
    defaults = {}
    if pools is not None:
        inputs.append(Port("stop", "stop", "float32", [scales - 1]))
        defaults["stop"] = np.full(scales - 1, NEVER, np.float32)
    recursion = _Recursion(model, source_size, resize, scales)
    for scale in range(1, scales + 1):
        recursion.look(scale)
        if scale < scales:
            recursion.go_on(scale, None if pools is None else pools[scale - 1])
    recursion.answer(fused=fused)
    return recursion.graph.model(inputs, recursion.outputs(), metadata, defaults)


class _Recursion:
    """The looks one after another, at the photos that are left.

    Attributes:
        graph: That it is written to.
        index: Name of the numbers of the photos that are left.
        ahead: Names of the regions that further looks go to, as far as they are known.
        answers: Name of what is known, [N, C], 0 of photos that are left.
        depth: Name of how many looks each photo was given, [N].
        made: What the looks have made.
    """

    def __init__(self, model: RACNN, source_size: int, resize: Any, scales: int) -> None:
        self.model, self.source_size, self.scales = model, source_size, scales
        self.graph = graph = Graph()
        self.rows, self.columns = axes_of(graph, "photos", source_size, resize)
        self.levels = sources_of(graph, "photos", self.rows, self.columns, source_size)
        self.examples = _examples(model, source_size, scales)
        scale, shift = 1.0 / (255.0 * model.std), -model.mean / model.std
        scaled = graph("Mul", self.levels, graph.constant(scale, np.float32))
        self.source = graph("Add", scaled, graph.constant(shift, np.float32))  # normalised
        self.num = graph("Slice", graph("Shape", "photos"), graph.ints(0), graph.ints(1))
        zero, one = graph.constant(0, np.int64), graph.constant(1, np.int64)
        self.index = graph("Range", zero, graph("Squeeze", self.num), one)
        self.answers = self._filled(0.0, model.num_classes)
        self.depth = graph("Expand", graph.constant([scales], np.int64), self.num)
        rows = graph("Concat", self.num, graph.ints(1), axis=0)
        self.region = graph("Expand", graph.constant([[0.0, 0.0, 1.0]], np.float32), rows)
        self.image, self.cut = self.source, self.region
        self.ahead: list[str] = []
        self.made: list[_Made] = []
        self.single: list[str] = []
        self.boxes: list[str] = []

    def look(self, scale: int) -> None:
        """Add a look."""
        near = scale > 1 and self.model.zoom_from == "source" and self.model.sample in (zoom, cut)
        part = _traced(_Look(self.model, scale, self.scales), self.examples[scale - 1], any_side=near)
        image, place = self._near(scale) if near else (self.image, self.cut)
        query = [self.made[-1].descriptor] if self.model.steered and self.made else []
        logits, descriptor, features, view, pixels, *ahead = self.graph.inline(
            part, [image, place, self.region, *query]
        )
        self.made.append(_Made(logits, descriptor, features, view, pixels, self.index, *ahead[:1]))
        self.ahead += ahead[1:]
        shares = self.graph("Softmax", logits, axis=1)
        self.single.append(self._put(self._filled(0.0, self.model.num_classes), shares))
        if scale > 1:
            centres, sides = self._parts_of_region(scale)
            boxes = boxes_in_photo(self.graph, centres, sides, self.rows, self.columns, self.source_size)
            self.boxes.append(self._put(self._filled(np.nan, 4), boxes))

    def _parts_of_region(self, scale: int) -> tuple[list[str], list[str]]:
        """Return the centre, across and down, and the half sides of where a look goes, [n, 1] each."""
        width = self.examples[scale - 1][2].shape[1]  # 3 of squares, 4 of rectangles
        parts = self.graph.node("Split", [self.region, self.graph.ints(*[1] * width)], width, axis=1)
        return parts[:2], (parts[2:] * 2)[:2]

    def _near(self, scale: int) -> tuple[str, str]:
        """Return the square of the sources that holds all that views of some side are sampled from, and the regions in its frame.

        A view is sampled by products with whole rows and columns, most of which weigh nothing.
        """
        graph, size = self.graph, float(self.source_size)
        side, half = graph.floats(size), graph.floats(size / 2)
        centres, sides = self._parts_of_region(scale)
        one = graph.floats(1.0)
        middles = [graph("Mul", graph("Add", centre, one), half) for centre in centres]
        extents = []
        for each in dict.fromkeys(sides):  # a square has one
            spacing = graph("Mul", each, graph.floats(size / self.model.view_sizes[scale - 1]))
            reach = graph(
                "Add", graph("Max", spacing, one), one
            )  # of a sample's triangle, and a pixel to spare
            extents.append(graph("Add", graph("Mul", each, half), reach))
        extents = (extents * 2)[:2]
        rest = (
            graph.constant([[size]], np.float32),
            graph.constant([[0.0]], np.float32),
        )  # where no photo is left
        lows = [
            graph("ReduceMin", graph("Concat", graph("Sub", each, extent), rest[0], axis=0), keepdims=0)
            for each, extent in zip(middles, extents, strict=True)
        ]
        highs = [
            graph("ReduceMax", graph("Concat", graph("Add", each, extent), rest[1], axis=0), keepdims=0)
            for each, extent in zip(middles, extents, strict=True)
        ]
        widths = [graph("Sub", high, low) for low, high in zip(lows, highs, strict=True)]
        length = graph("Min", graph("Add", graph("Ceil", graph("Max", *widths, one)), one), side)
        room = graph("Sub", side, length)
        starts = [graph("Floor", graph("Min", graph("Max", low, graph.floats(0.0)), room)) for low in lows]
        ends = [graph("Add", start, length) for start in starts]
        down_then_across = [
            graph(
                "Concat",
                *(
                    graph("Unsqueeze", graph("Cast", each, to=TYPES["int64"]), graph.ints(0))
                    for each in reversed(pair)
                ),
                axis=0,
            )
            for pair in (starts, ends)
        ]
        image = graph("Slice", self.image, *down_then_across, graph.ints(2, 3))
        factor = graph("Div", graph.floats(2.0), length)
        moved = [
            graph("Sub", graph("Mul", graph("Sub", middle, start), factor), one)
            for middle, start in zip(middles, starts, strict=True)
        ]
        scaled = [graph("Mul", each, graph("Div", side, length)) for each in dict.fromkeys(sides)]
        return image, graph("Concat", *moved, *scaled, axis=1)

    def go_on(self, scale: int, pool: Sequence[float] | None) -> None:
        """Choose what the next look is given: which photos, and what of them.

        Args:
            scale: The look before.
            pool: Weights of the looks so far in the answer that may be sure enough; None: all photos go on.
        """
        last = self.made[-1]
        parent = self.model.zoom_from == "parent"
        carried = [self.source, *self.ahead, *([last.view, last.proposal] if parent else [])]
        carried += [each for past in self.made for each in (past.logits, past.descriptor)]
        if pool is not None:
            carried = self._without_sure(scale, pool, carried)
        self.source, self.region, *carried = carried
        known = len(self.ahead) - 1
        self.ahead, carried = carried[:known], carried[known:]
        within, past_outputs = (carried[:2], carried[2:]) if parent else ([self.source, self.region], carried)
        for past, number in zip(self.made, range(0, 2 * len(self.made), 2), strict=True):
            past.logits, past.descriptor = past_outputs[number : number + 2]
        self.image, self.cut = within

    def _without_sure(self, scale: int, pool: Sequence[float], carried: Sequence[str]) -> list[str]:
        """Answer photos that are sure enough, and return the rows of the others."""
        graph = self.graph
        weighed = [
            graph("Mul", past.logits, graph.floats(weight))
            for past, weight in zip(self.made, pool, strict=False)
        ]
        pooled = graph("Softmax", graph("Sum", *weighed), axis=1)
        sure = graph("ReduceMax", pooled, graph.ints(1), keepdims=0)
        least = graph("Gather", "stop", graph.constant(scale - 1, np.int64), axis=0)
        done = graph("GreaterOrEqual", sure, least)
        stopped = graph("Unsqueeze", graph("Compress", self.index, done, axis=0), graph.ints(1))
        self.answers = graph("ScatterND", self.answers, stopped, graph("Compress", pooled, done, axis=0))
        how_many = graph("Slice", graph("Shape", stopped), graph.ints(0), graph.ints(1))
        looked = graph("Expand", graph.constant([scale], np.int64), how_many)
        self.depth = graph("ScatterND", self.depth, stopped, looked)
        left = graph("Not", done)
        self.index, *rest = (graph("Compress", each, left, axis=0) for each in (self.index, *carried))
        return rest

    def answer(self, *, fused: bool) -> None:
        """Answer the photos that are left, by all looks together."""
        graph = self.graph
        if fused:
            channels = self.model.classifiers[0].get_parameter("weight").shape[1]
            rows = tuple(torch.zeros(2, channels) for _ in self.made)
            descriptors = [look.descriptor for look in self.made]
            (logits,) = graph.inline(_traced(_Fusion(self.model), rows), descriptors)
            together = graph("Softmax", logits, axis=1)
        else:
            together = graph("Mean", *(graph("Softmax", look.logits, axis=1) for look in self.made))
        self.answers = self._put(self.answers, together)

    def outputs(self) -> list[Port]:
        """Add what is made of the answers, and return all that the graph puts out."""
        graph, model, side = self.graph, self.model, self.source_size
        probabilities: list[int | str] = ["photos", model.num_classes]
        grey_levels = graph("Cast", self.levels, to=TYPES["uint8"])
        made = [Port(self.answers, "probabilities", "float32", probabilities)]
        made += [
            Port(each, f"look_{i}", "float32", probabilities) for i, each in enumerate(self.single, start=1)
        ]
        made.append(Port(self.depth, "looks", "int64", ["photos"]))
        made.append(Port(grey_levels, "source", "uint8", ["photos", 3, side, side]))
        if self.boxes:
            stacked = [graph("Unsqueeze", each, graph.ints(1)) for each in self.boxes]
            boxes = graph("Concat", *stacked, axis=1)
            made.append(Port(boxes, "boxes", "float32", ["photos", len(stacked), 4]))
        for number, (look, size) in enumerate(zip(self.made, model.view_sizes, strict=False), start=1):
            made.append(Port(look.pixels, f"view_{number}", "float32", [f"given_{number}", 3, size, size]))
        return made + (self._why() if model.num_classes > 1 else [])

    def _why(self) -> list[Port]:
        graph = self.graph
        _, best = graph.node("TopK", [self.answers, graph.ints(2)], 2, axis=1)
        ports = []
        for number, look in enumerate(self.made, start=1):
            features = _features(self.model, number, self.examples[number - 1])
            part = _traced(_Why(self.model, number), (features, torch.tensor([[0, 1], [1, 0]])))
            (cells,) = graph.inline(part, [look.features, graph("Gather", best, look.index, axis=0)])
            ports.append(Port(cells, f"why_{number}", "float32", [f"given_{number}", *features.shape[2:]]))
        return ports

    def _put(self, into: str, rows: str) -> str:
        """Return ``into`` with the rows of the photos that are left."""
        return self.graph("ScatterND", into, self.graph("Unsqueeze", self.index, self.graph.ints(1)), rows)

    def _filled(self, value: float, width: int) -> str:
        """Return a row of one value for every photo."""
        shape = self.graph("Concat", self.num, self.graph.ints(width), axis=0)
        return self.graph("Expand", self.graph.floats(value), shape)


@torch.no_grad()
def _examples(model: RACNN, source_size: int, scales: int) -> list[tuple[Tensor, ...]]:
    """Return what each look may be given: :class:`_Look`'s arguments for two photos, none of them another's."""
    source = model.normalise(
        torch.rand(2, 3, source_size, source_size, generator=torch.Generator().manual_seed(0))
    )
    output: RACNNOutput = model(source * model.std + model.mean, num_scales=scales)
    examples: list[tuple[Tensor, ...]] = [(source, whole(2), whole(2))]
    for before, now in zip(output.scales, output.scales[1:], strict=False):
        assert before.proposal is not None
        parent = model.zoom_from == "parent"
        query = [before.descriptor] if model.steered else []
        examples.append(
            (before.view, before.proposal, now.region, *query)
            if parent
            else (source, now.region, now.region.clone(), *query)
        )
    return examples


@torch.no_grad()
def _features(model: RACNN, scale: int, example: tuple[Tensor, ...]) -> Tensor:
    features: Tensor = _Look(model, scale, scale)(*example)[2]
    return features


def _traced(part: nn.Module, example: tuple[Tensor, ...], *, any_side: bool = False) -> onnx.ModelProto:
    """Return a part as an ONNX model of any number of photos; with ``any_side`` its images are squares of any side."""
    photos = torch.export.Dim("photos", min=1, max=1024)
    given: tuple[dict[int, Any], ...] = tuple({0: photos} for _ in example)
    if any_side:
        side = torch.export.Dim("side", min=2, max=8192)
        given = ({0: photos, 2: side, 3: side}, *given[1:])
    shapes: Any = (given,) if isinstance(part, _Fusion) else given
    with (
        warnings.catch_warnings(),
        redirect_stdout(io.StringIO()),
        redirect_stderr(io.StringIO()),
        torch.no_grad(),
    ):
        warnings.simplefilter("ignore")
        program = torch.export.export(part.eval(), example, dynamic_shapes=shapes, strict=False)
        made = torch.onnx.export(program, dynamo=True, opset_version=OPSET, verbose=False)
    assert made is not None
    return made.model_proto
