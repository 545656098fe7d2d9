"""Convolutions in whole numbers of 8 bits: a quarter of the size, faster where a CPU has instructions for them, a little less exact.

Static quantisation by onnxruntime, a scale for each channel of the weights and each map, from maps of training photos. What finds
regions, zooms and classifies stays as it is, and so do the first convolutions of each look, which hold few weights and on which most
depends (docs/performance.md).
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from racnn.engine.predictor import Predictor
from racnn.errors import ConfigError, ExportError

CALIBRATED_ON = 100  # training photos
KEPT = 0.12  # of the convolutions of a look, its first
MOST_LOST = 1.0  # points of top-1
LEAST_CONVOLVED = 0.5  # of a network's weights, or whole numbers would do little


@dataclass(frozen=True)
class Lost:
    """What the whole numbers cost.

    Attributes:
        photos: Validation photos that it was measured on.
        top1: Share of them that is answered right.
        float32: The same before.
        agree: Share that is answered alike.
    """

    photos: int
    top1: float
    float32: float
    agree: float


def quantised(model: onnx.ModelProto, photos: Sequence[np.ndarray], looks: int) -> onnx.ModelProto:
    """Return a model whose convolutions are in whole numbers, by what they see of some photos.

    Raises:
        ConfigError: Most of its weights are in no convolutions.
    """
    import onnxruntime
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.left: Iterator[np.ndarray] = iter(photos)

        def get_next(self) -> dict[str, np.ndarray] | None:
            photo = next(self.left, None)
            return None if photo is None else {"photos": photo[None]}

    for number, node in enumerate(model.graph.node):
        node.name = f"n{number}"  # by which they are told apart
    _refuse_unconvolved(model)
    sizes = {each.name: each.dims for each in model.graph.initializer}
    every = {node.name: sizes[node.input[1]][0] for node in model.graph.node if node.op_type == "Conv"}
    convolutions = [name for name, channels in every.items() if channels > 3]  # not what shrinks the photo
    of_a_look = len(convolutions) // looks
    kept = [name for i, name in enumerate(convolutions) if i % of_a_look < KEPT * of_a_look]
    onnxruntime.set_default_logger_severity(3)
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        before, after = Path(folder) / "float32.onnx", Path(folder) / "int8.onnx"
        onnx.save(model, before)
        quantize_static(
            before,
            after,
            Reader(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv"],
            nodes_to_exclude=[*kept, *(every.keys() - convolutions)],
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        return onnx.load(after)


def _refuse_unconvolved(model: onnx.ModelProto) -> None:
    kernels = {node.input[1] for node in model.graph.node if node.op_type == "Conv"}
    sizes = {each.name: int(np.prod(each.dims)) for each in model.graph.initializer}
    share = sum(sizes.get(name, 0) for name in kernels) / max(1, sum(sizes.values()))
    if share < LEAST_CONVOLVED:
        raise ConfigError(
            f"--int8: puts convolutions into whole numbers, and of this network's weights they hold {100 * share:.0f} %; "
            "export it without"
        )


def measure_lost(before: bytes, after: bytes, photos: Iterator[tuple[np.ndarray, int]]) -> Lost:
    """Return what two models answer on photos whose classes are known."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    sessions = [
        onnxruntime.InferenceSession(each, options, providers=["CPUExecutionProvider"])
        for each in (before, after)
    ]
    rows = []
    for photo, label in photos:
        answers = [int(each.run(["probabilities"], {"photos": photo[None]})[0].argmax()) for each in sessions]
        rows.append((answers[0] == label, answers[1] == label, answers[0] == answers[1]))
    float32, top1, agree = np.array(rows, float).mean(axis=0).tolist()
    return Lost(len(rows), top1, float32, agree)


def refuse_lost(lost: Lost, most: float) -> None:
    """Refuse a network that has lost too much.

    Raises:
        ExportError: It has.
    """
    points = 100 * (lost.float32 - lost.top1)
    if points > most:
        raise ExportError(
            f"--int8: {points:.1f} points of top-1 were lost on {lost.photos} validation photos ({100 * lost.float32:.1f} to "
            f"{100 * lost.top1:.1f} %), at most {most:g} may be (--most-lost). Nothing was written"
        )


def photos_of(
    trained: Predictor, root: Path | None
) -> tuple[list[np.ndarray], Iterator[tuple[np.ndarray, int]]]:
    """Return training photos to calibrate on, evenly from all, and validation photos with their classes.

    Raises:
        ConfigError: The data set is not at hand.
    """
    from racnn.engine.evaluator import data_of
    from racnn.errors import DataError

    try:
        data = data_of(trained, root=root)
    except (ConfigError, DataError) as error:
        raise ConfigError(
            f"--int8: needs the photos that the network was trained on (--data): {error}"
        ) from None
    train, val = data.splits["train"], data.splits["val"]
    num = min(CALIBRATED_ON, len(train))
    some: list[Any] = [train.catalog.load(train.records[i * len(train) // num]) for i in range(num)]
    return some, ((val.catalog.load(record), record.label) for record in val.records)
