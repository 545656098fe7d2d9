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
from torch import Tensor, nn

from racnn.export.graph import OPSET, TYPES, Graph
from racnn.export.photo import Axis, axes_of, boxes_in_photo, sources_of
from racnn.models.racnn.model import RACNN, RACNNOutput, ScaleOutput
from racnn.ops.regions import whole

NEVER = 2.0  # a probability to stop at that none reaches


class _First(nn.Module):
    """Grey levels [n, 3, S, S] to the normalised source."""

    def __init__(self, model: RACNN) -> None:
        super().__init__()
        self.model = model

    def forward(self, levels: Tensor) -> Tensor:
        return self.model.normalise(levels / 255.0)


class _Look(nn.Module):
    """One look: from what it cuts its view of, and where, to everything that later parts need."""

    def __init__(self, model: RACNN, scale: int) -> None:
        super().__init__()
        self.model, self.scale = model, scale

    def forward(self, image: Tensor, cut: Tensor, region: Tensor) -> tuple[Tensor, ...]:
        """Return logits, descriptor, features, the view as it is classified and in [0, 1], and, but of the last, proposal and next region.

        Args:
            image: [n, 3, h, w], the source, or with ``zoom_from`` 'parent' the view before.
            cut: [n, 3], where the view lies in it.
            region: [n, 3], where it lies in the source.
        """
        model, scale = self.model, self.scale
        parent = None
        if model.zoom_from == "parent" and scale > 1:
            parent = ScaleOutput(region, image, image, region, region, cut)
        view = model.crop(scale, image, cut, parent=parent)
        found = model.forward_scale(scale, view, region)
        made = (found.logits, found.descriptor, found.features, view, model.to_pixels(view))
        return made if found.proposal is None else (*made, found.proposal, found.next_region)


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
    """What a look has made of the photos that were given it, as names in the graph."""

    logits: str
    descriptor: str
    features: str
    view: str
    pixels: str
    proposal: str | None = None
    next_region: str | None = None


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
    graph = Graph()
    rows, columns = axes_of(graph, "photos", source_size, resize)
    levels = sources_of(graph, "photos", rows, columns, source_size)
    examples = _examples(model, source_size, scales)
    (source,) = graph.inline(_traced(_First(model), (torch.zeros(2, 3, source_size, source_size),)), [levels])
    num = graph("Slice", graph("Shape", "photos"), graph.ints(0), graph.ints(1))
    whole_photo = graph(
        "Expand", graph.constant([[0.0, 0.0, 1.0]], np.float32), graph("Concat", num, graph.ints(1), axis=0)
    )
    zero, one = graph.constant(0, np.int64), graph.constant(1, np.int64)
    index = graph("Range", zero, graph("Squeeze", num), one)  # which photos are left
    parts = _Parts(graph, num, model.num_classes)
    answers, depth = parts.zeros(), graph("Expand", graph.constant([scales], np.int64), num)
    image, cut, region = source, whole_photo, whole_photo
    made: list[_Made] = []
    single: list[str] = []
    boxes: list[str] = []
    views: list[str] = []
    kept: list[tuple[str, str]] = []  # features of each look, and which photos they are of
    for scale in range(1, scales + 1):
        found = graph.inline(_traced(_Look(model, scale), examples[scale - 1]), [image, cut, region])
        look = _Made(*found)
        made.append(look)
        views.append(look.pixels)
        kept.append((look.features, index))
        single.append(parts.scattered(index, graph("Softmax", look.logits, axis=1)))
        if scale > 1:
            boxes.append(parts.boxes(index, boxes_in_photo(graph, region, rows, columns, source_size)))
        if scale == scales:
            break
        assert look.proposal is not None
        assert look.next_region is not None
        carried = [source, look.view, look.proposal, look.next_region]
        carried += [each for past in made for each in (past.logits, past.descriptor)]
        if pools is not None:
            pooled = parts.pooled([past.logits for past in made], pools[scale - 1])
            sure = graph("ReduceMax", pooled, graph.ints(1), keepdims=0)
            least = graph("Gather", "stop", graph.constant(scale - 1, np.int64), axis=0)
            done = graph("GreaterOrEqual", sure, least)
            stopped = graph("Unsqueeze", graph("Compress", index, done, axis=0), graph.ints(1))
            answers = graph("ScatterND", answers, stopped, graph("Compress", pooled, done, axis=0))
            looked = graph(
                "Expand",
                graph.constant([scale], np.int64),
                graph("Slice", graph("Shape", stopped), graph.ints(0), graph.ints(1)),
            )
            depth = graph("ScatterND", depth, stopped, looked)
            left = graph("Not", done)
            index, *carried = (graph("Compress", each, left, axis=0) for each in (index, *carried))
        source, view, proposal, region, *past_outputs = carried
        for past, number in zip(made, range(0, 2 * len(made), 2), strict=True):
            past.logits, past.descriptor = past_outputs[number : number + 2]
        image, cut = (view, proposal) if model.zoom_from == "parent" else (source, region)
    if fused:
        fusion = _Fusion(model)
        channels = model.classifiers[0].get_parameter("weight").shape[1]
        rows_of = tuple(torch.zeros(2, channels) for _ in made)
        (logits,) = graph.inline(_traced(fusion, rows_of), [look.descriptor for look in made])
        together = graph("Softmax", logits, axis=1)
    else:
        shares = [graph("Softmax", look.logits, axis=1) for look in made]
        together = graph("Mean", *shares)
    answers = graph("ScatterND", answers, graph("Unsqueeze", index, graph.ints(1)), together)
    outputs: list[tuple[str, str, str, Sequence[int | str]]] = [
        (answers, "probabilities", "float32", ["photos", model.num_classes])
    ]
    outputs += [
        (each, f"look_{i}", "float32", ["photos", model.num_classes]) for i, each in enumerate(single, 1)
    ]
    outputs.append((depth, "looks", "int64", ["photos"]))
    grey_levels = graph("Cast", levels, to=TYPES["uint8"])
    outputs.append((grey_levels, "source", "uint8", ["photos", 3, source_size, source_size]))
    if boxes:
        stacked = [graph("Unsqueeze", each, graph.ints(1)) for each in boxes]
        outputs.append((graph("Concat", *stacked, axis=1), "boxes", "float32", ["photos", len(boxes), 4]))
    for number, each in enumerate(views, start=1):
        side = model.view_sizes[number - 1]
        outputs.append((each, f"view_{number}", "float32", [f"given_{number}", 3, side, side]))
    if model.num_classes > 1:
        _, best = graph.node("TopK", [answers, graph.ints(2)], 2, axis=1)
        for number, (features, of) in enumerate(kept, start=1):
            example = (_features(model, number, examples[number - 1]), torch.tensor([[0, 1], [1, 0]]))
            own = graph("Gather", best, of, axis=0)
            (cells,) = graph.inline(_traced(_Why(model, number), example), [features, own])
            outputs.append((cells, f"why_{number}", "float32", [f"given_{number}", *example[0].shape[2:]]))
    inputs: list[tuple[str, str, Sequence[int | str]]] = [
        ("photos", "uint8", ["photos", "height", "width", 3])
    ]
    defaults = {}
    if pools is not None:
        inputs.append(("stop", "float32", [scales - 1]))
        defaults["stop"] = np.full(scales - 1, NEVER, np.float32)
    return graph.model(inputs, outputs, metadata, defaults)


class _Parts:
    """Nodes that put rows of some photos among those of all."""

    def __init__(self, graph: Graph, num: str, classes: int) -> None:
        self.graph, self.num, self.classes = graph, num, classes

    def zeros(self) -> str:
        return self._filled(0.0, self.classes)

    def scattered(self, index: str, rows: str) -> str:
        return self._put(self.zeros(), index, rows)

    def boxes(self, index: str, rows: str) -> str:
        return self._put(self._filled(np.nan, 4), index, rows)

    def pooled(self, logits: Sequence[str], weights: Sequence[float]) -> str:
        graph = self.graph
        weighed = [
            graph("Mul", each, graph.floats(weight)) for each, weight in zip(logits, weights, strict=False)
        ]
        return graph("Softmax", graph("Sum", *weighed), axis=1)

    def _put(self, into: str, index: str, rows: str) -> str:
        return self.graph("ScatterND", into, self.graph("Unsqueeze", index, self.graph.ints(1)), rows)

    def _filled(self, value: float, width: int) -> str:
        graph = self.graph
        return graph("Expand", graph.floats(value), graph("Concat", self.num, graph.ints(width), axis=0))


@torch.no_grad()
def _examples(model: RACNN, source_size: int, scales: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Return what each look may be given: :class:`_Look`'s arguments for two photos."""
    source = model.normalise(
        torch.rand(2, 3, source_size, source_size, generator=torch.Generator().manual_seed(0))
    )
    output: RACNNOutput = model(source * model.std + model.mean, num_scales=scales)
    examples = [(source, whole(2), whole(2))]
    for before, now in zip(output.scales, output.scales[1:], strict=False):
        assert before.proposal is not None
        parent = model.zoom_from == "parent"
        examples.append(
            (before.view, before.proposal, now.region) if parent else (source, now.region, now.region)
        )
    return examples


@torch.no_grad()
def _features(model: RACNN, scale: int, example: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    features: Tensor = _Look(model, scale)(*example)[2]
    return features


def _traced(part: nn.Module, example: tuple[Tensor, ...]) -> onnx.ModelProto:
    """Return a part as an ONNX model of any number of photos."""
    photos = torch.export.Dim("photos", min=1, max=1024)
    given = tuple({0: photos} for _ in example)
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


__all__ = ["NEVER", "Axis", "build_onnx"]
