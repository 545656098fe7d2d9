"""Write a trained network to an .onnx file, once it is known to answer as it did before."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from racnn import __version__
from racnn.data.transforms import SourceTransform
from racnn.engine.predictor import Predictor, network_digest, why_cells
from racnn.errors import ConfigError, ExportError
from racnn.models.early_exit import pooled_answer
from racnn.models.family import combined_log_probs
from racnn.models.racnn.model import RACNN
from racnn.ops.regions import to_boxes_xyxy
from racnn.portable.onnx_bytes import CARD, FORMAT, KEY, SHA256, sha256_of
from racnn.sections import DataConfig

MOST_OFF = 1e-4  # in a probability, from the same source
MOST_OFF_FROM_PHOTO = 2e-3  # where OpenCV resized the photo, which on other processors may round otherwise
MOST_OFF_BOX = 0.1  # pixels of the photo
MOST_OFF_WHY = 1e-3  # of the largest value of a map
MOST_LEVELS = 1  # of which a pixel of the source may then be off
SHAPES = ((96, 96), (300, 200), (333, 517), (900, 600), (41, 640), (720, 1280))  # of drawn birds to check on
LARGEST = 2**31 - 1  # bytes that Protocol Buffers can hold


@dataclass(frozen=True)
class Checked:
    """How far an exported network is from what it was, on some photos.

    Attributes:
        photos: How many.
        sizes: How many different sizes they have.
        probability: Largest difference in a probability, of all looks together, a single one, or those that early exit leaves
            off after, from the same source.
        from_photo: The same from the photo, which the network's own pipeline resizes by OpenCV.
        levels: Largest difference of the two sources, in grey levels.
        box: Largest difference of a box's edge, in pixels of the photo, from the same source.
        why: Largest difference of what speaks for the answer, as a share of the largest value of its map, likewise.
    """

    photos: int
    sizes: int
    probability: float
    from_photo: float
    levels: float
    box: float
    why: float

    def is_good(self) -> bool:
        """Return whether the network may be called the same."""
        return (
            self.probability <= MOST_OFF
            and self.from_photo <= MOST_OFF_FROM_PHOTO
            and self.levels <= MOST_LEVELS
            and self.box <= MOST_OFF_BOX
            and self.why <= MOST_OFF_WHY
        )


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
    trained: Predictor,
    photos: Sequence[np.ndarray],
    card: Callable[[dict[str, Any]], str] = lambda _: "",
    int8: Int8 | None = None,
) -> tuple[bytes, dict[str, Any]]:
    """Return the content of an .onnx file, checked on photos of several sizes, and what it says of itself.

    The metadata has ``model_card``, in Markdown, and ``racnn``, in JSON: ``format``, ``version``, ``network`` (digest of the weights), ``class_names``, ``scales``, ``fused``, ``source`` (``size`` and ``resize``), ``view_sizes``, ``backbone``,
    ``dataset``, ``early_exit`` (probabilities to stop at) and ``caution`` (levels), both null where nothing was chosen, ``checked`` (in float32), ``int8``
    (:class:`racnn.export.int8.Lost`, and how far a ``probability`` and a ``box`` are then off on the same photos; or null), and ``sha256``, see :mod:`racnn.portable.onnx_bytes`.

    Args:
        trained: On the CPU.
        photos: uint8 [h, w, 3] each.
        card: Returns a model card of what the file says of itself, see :func:`racnn.engine.card.model_card`.
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
    if not checked.is_good():
        raise ExportError(
            f"the exported network answers otherwise on {checked.photos} photos: by {checked.probability:.1e} in a probability "
            f"({MOST_OFF:.0e} is let pass), from the photo on {checked.from_photo:.1e} ({MOST_OFF_FROM_PHOTO:.0e}), sources by "
            f"{checked.levels:g} grey levels ({MOST_LEVELS}), boxes by {checked.box:.1e} pixels ({MOST_OFF_BOX:g}), what speaks for "
            f"answers by {checked.why:.1e} ({MOST_OFF_WHY:.0e}). Nothing was written"
        )
    about = {**_about(trained), "checked": dataclasses.asdict(checked), "int8": None}
    if int8 is not None:
        from racnn.export.int8 import measure_lost, quantised, refuse_lost

        before, model = model.SerializeToString(), quantised(model, int8.calibration, trained.scales)
        lost = measure_lost(before, model.SerializeToString(), int8.validation)
        refuse_lost(lost, int8.most_lost)
        off = check(trained, model.SerializeToString(), photos)
        about["int8"] = {**dataclasses.asdict(lost), "probability": off.probability, "box": off.box}
        del model.metadata_props[:]
    model.metadata_props.add(key=CARD, value=card(about))
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

    from racnn.export.network import NEVER

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_outputs()]
    data = trained.config.data
    transform = SourceTransform(data.source_size, data.resize)
    off = dict.fromkeys(("probability", "from_photo", "levels", "box", "why"), 0.0)
    for photo in photos:
        size = (photo.shape[0], photo.shape[1])
        found = dict(zip(names, session.run(names, {"photos": photo[None]}), strict=True))
        source = transform.source(photo, size)
        off["levels"] = _further(off["levels"], found["source"][0], source.numpy())
        output = trained.model(torch.from_numpy(found["source"]), num_scales=trained.scales)
        for name, wanted in _answers(trained, output).items():
            off["probability"] = _further(off["probability"], found[name], wanted)
        same = np.array_equal(found["source"][0], source.numpy())
        from_photo = output if same else trained.model(source[None], num_scales=trained.scales)
        for name, wanted in _answers(trained, from_photo).items():
            off["from_photo"] = _further(off["from_photo"], found[name], wanted)
        for region, box in zip(output.regions[1:], found.get("boxes", [[]])[0], strict=True):
            in_source = to_boxes_xyxy(region, (data.source_size, data.source_size))[0].tolist()
            off["box"] = _further(off["box"], box, np.array(transform.to_photo(in_source, size)))
        if len(trained.class_names) > 1:
            for number, cells in enumerate(
                why_cells(trained.model, output, torch.from_numpy(found["probabilities"])), start=1
            ):
                scale = max(float(cells.max()), 1e-6)
                off["why"] = _further(off["why"], found[f"why_{number}"] / scale, cells.numpy() / scale)
        for depth, pool in enumerate(trained.early_exit.pools if trained.early_exit else (), start=1):
            stop = np.full(trained.scales - 1, NEVER, np.float32)
            stop[depth - 1] = 0.0  # every photo leaves off after this look
            given = {"photos": photo[None], "stop": stop}
            stopped, looks = session.run(["probabilities", "looks"], given)
            wanted = pooled_answer(output.logits, pool).exp().numpy()
            off["probability"] = _further(off["probability"], stopped, wanted)
            assert looks.tolist() == [depth], (looks, depth)
    return Checked(len(photos), len({photo.shape for photo in photos}), **off)


def _answers(trained: Predictor, output: Any) -> dict[str, np.ndarray]:
    """Return the probabilities [1, C] of all looks together and of each, by their names in the graph."""
    together = combined_log_probs(output.logits, output.fused if trained.fused else None).exp()
    looks = {f"look_{i}": logits.softmax(dim=1).numpy() for i, logits in enumerate(output.logits, start=1)}
    return {"probabilities": together.numpy(), **looks}


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
