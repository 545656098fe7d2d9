"""Write a trained network to an .onnx file, once it is known to answer as it did before."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from racnn import __version__
from racnn.data.transforms import SourceTransform
from racnn.engine.predictor import Predictor, network_digest
from racnn.errors import ConfigError, ExportError
from racnn.models.family import combined_log_probs
from racnn.models.racnn.model import RACNN
from racnn.ops.regions import to_boxes_xyxy
from racnn.portable.onnx_bytes import CARD, FORMAT, KEY, SHA256, sha256_of
from racnn.sections import DataConfig

MOST_OFF = 1e-4  # in a probability, from the same source
MOST_OFF_FROM_PHOTO = 2e-3  # where OpenCV resized the photo, which on other processors may round otherwise
MOST_LEVELS = 1  # of which a pixel of the source may then be off
SHAPES = ((96, 96), (300, 200), (333, 517), (900, 600), (41, 640), (720, 1280))  # of drawn birds to check on
LARGEST = 2**31 - 1  # bytes that Protocol Buffers can hold


@dataclass(frozen=True)
class Checked:
    """How far an exported network is from what it was, on some photos.

    Attributes:
        photos: How many.
        sizes: How many different sizes they have.
        probability: Largest difference in a probability, of all looks together or a single one, from the same source.
        from_photo: The same from the photo, which the network's own pipeline resizes by OpenCV.
        levels: Largest difference of the two sources, in grey levels.
        box: Largest difference of a box's edge, in pixels of the photo, from the same source.
    """

    photos: int
    sizes: int
    probability: float
    from_photo: float
    levels: float
    box: float


@dataclass(frozen=True)
class Int8:
    """How to put convolutions into whole numbers of 8 bits.

    Attributes:
        calibration: Training photos, uint8 [h, w, 3] each.
        validation: Validation photos with their classes.
        most_lost: Points of top-1 that may be lost on them.
    """

    calibration: Sequence[np.ndarray]
    validation: Iterator[tuple[np.ndarray, int]]
    most_lost: float


def export_onnx(
    trained: Predictor, photos: Sequence[np.ndarray], card: str = "", int8: Int8 | None = None
) -> tuple[bytes, dict[str, Any]]:
    """Return the content of an .onnx file, checked on photos of several sizes, and what it says of itself.

    The metadata has ``model_card``, in Markdown, and ``racnn``, in JSON: ``format``, ``version``, ``network`` (digest of the weights), ``class_names``, ``scales``, ``fused``, ``source`` (``size`` and ``resize``), ``view_sizes``, ``backbone``,
    ``dataset``, ``early_exit`` (probabilities to stop at) and ``caution`` (levels), both null where nothing was chosen, ``checked``, ``int8``
    (:class:`racnn.export.int8.Lost`, or null), and ``sha256``, see :mod:`racnn.portable.onnx_bytes`.

    Args:
        trained: On the CPU.
        photos: uint8 [h, w, 3] each.
        card: See :func:`racnn.engine.card.model_card`.
        int8: Whether its convolutions are to be in whole numbers; it is checked before they are.

    Raises:
        ConfigError: The network is of a family that cannot be exported, or it is too large for a file.
        ExportError: The exported network answers otherwise, or has lost too much by whole numbers.
    """
    if not isinstance(trained.model, RACNN):
        raise ConfigError(
            f"export: knows RA-CNN, and this network is of model.family {trained.config.model.family}"
        )
    from racnn.export.network import build_onnx

    trained.model.compute_dtype = None  # float32
    model = build_onnx(
        trained.model,
        source_size=trained.config.data.source_size,
        resize=trained.config.data.resize,
        scales=trained.scales,
        fused=trained.fused,
        pools=None if trained.early_exit is None else trained.early_exit.pools,
        metadata={},
    )
    if model.ByteSize() > LARGEST:
        raise ConfigError(
            f"export: the network takes {model.ByteSize() / 1e9:.1f} GB, and an .onnx file holds 2.1"
        )
    checked = check(trained, model.SerializeToString(), photos)
    good = checked.probability <= MOST_OFF and checked.from_photo <= MOST_OFF_FROM_PHOTO
    if not good or checked.levels > MOST_LEVELS:
        raise ExportError(
            f"the exported network answers otherwise on {checked.photos} photos: by {checked.probability:.1e} in a probability "
            f"({MOST_OFF:.0e} is let pass), from the photo on {checked.from_photo:.1e} ({MOST_OFF_FROM_PHOTO:.0e}), sources by "
            f"{checked.levels:g} grey levels ({MOST_LEVELS}). Nothing was written"
        )
    about = {**_about(trained), "checked": dataclasses.asdict(checked), "int8": None}
    if int8 is not None:
        from racnn.export.int8 import measure_lost, quantised, refuse_lost

        before, model = model.SerializeToString(), quantised(model, int8.calibration, trained.scales)
        lost = measure_lost(before, model.SerializeToString(), int8.validation)
        refuse_lost(lost, int8.most_lost)
        about["int8"] = dataclasses.asdict(lost)
        del model.metadata_props[:]
    model.metadata_props.add(key=CARD, value=card)
    about[SHA256] = sha256_of(model.SerializeToString(), about)
    model.metadata_props.add(key=KEY, value=json.dumps(about))
    return model.SerializeToString(), about


def _about(trained: Predictor) -> dict[str, Any]:
    config, early, caution = trained.config, trained.early_exit, trained.caution
    stop = None if early is None else [early.at(depth) for depth in range(1, trained.scales)]
    return {
        "format": FORMAT,
        "version": __version__,
        "network": network_digest(trained),
        "dataset": config.data.dataset,
        "backbone": config.model.backbone,
        "class_names": trained.class_names,
        "scales": trained.scales,
        "fused": trained.fused,
        "view_sizes": list(config.model.view_sizes),
        "source": {"size": config.data.source_size, "resize": config.data.resize},
        "early_exit": stop or None,
        "caution": None if caution is None else dataclasses.asdict(caution),
    }


@torch.no_grad()
def check(trained: Predictor, content: bytes, photos: Sequence[np.ndarray]) -> Checked:
    """Compare an exported network with the one that it is of, float32, from the same pixels on."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_outputs()]
    data = trained.config.data
    transform = SourceTransform(data.source_size, data.resize)
    off = dict.fromkeys(("probability", "from_photo", "levels", "box"), 0.0)
    for photo in photos:
        size = (photo.shape[0], photo.shape[1])
        found = dict(zip(names, session.run(names, {"photos": photo[None]}), strict=True))
        source = transform.source(photo, size)
        off["levels"] = _further(off["levels"], found["source"][0], source.numpy())
        for key, pixels in (("probability", torch.from_numpy(found["source"])), ("from_photo", source[None])):
            answers, boxes = _answers(trained, pixels)
            names_of = ["probabilities", *(f"look_{i}" for i in range(1, trained.scales + 1))]
            for name, wanted in zip(names_of, answers, strict=True):
                off[key] = _further(off[key], found[name], wanted)
            if key == "probability" and boxes:
                in_photo = [transform.to_photo(box, size) for box in boxes]
                off["box"] = _further(off["box"], found["boxes"][0], np.array(in_photo))
    return Checked(len(photos), len({photo.shape for photo in photos}), **off)


def _answers(trained: Predictor, source: Tensor) -> tuple[list[np.ndarray], list[list[float]]]:
    """Return the probabilities [1, C] of all looks together and of each, and the boxes of the finer ones in pixels of the source."""
    output = trained.model(source, num_scales=trained.scales)
    together = combined_log_probs(output.logits, output.fused if trained.fused else None).exp()
    side = source.shape[-1]
    boxes = [to_boxes_xyxy(region, (side, side))[0].tolist() for region in output.regions[1:]]
    return [together.numpy(), *(logits.softmax(dim=1).numpy() for logits in output.logits)], boxes


def _further(most: float, ours: np.ndarray, theirs: np.ndarray) -> float:
    """Return the largest difference, also where one of them is not finite."""
    off = np.abs(ours.astype(np.float64) - theirs)
    return max(most, float(off.max()) if np.isfinite(off).all() else float("inf"))


def sample_photos(trained: Predictor, root: Path | None, num: int) -> list[np.ndarray]:
    """Return validation photos of a network's data set, where it is at hand, and drawn birds of several shapes beside them."""
    from racnn.data.sources.synthetic import synthetic_catalog
    from racnn.engine.evaluator import data_of
    from racnn.errors import DataError

    found: list[np.ndarray] = []
    try:
        photos = data_of(trained, root=root).splits["val"]
        records = photos.records
        found = [photos.catalog.load(records[i * len(records) // num]) for i in range(min(num, len(records)))]
    except (ConfigError, DataError):
        if root is not None:
            raise
    drawn = synthetic_catalog(DataConfig(dataset="synthetic", source_size=96))
    for record, (height, width) in zip(drawn.test, SHAPES, strict=False):
        resized = Image.fromarray(drawn.load(record)).resize((width, height), Image.Resampling.BICUBIC)
        found.append(np.array(resized))
    return found
