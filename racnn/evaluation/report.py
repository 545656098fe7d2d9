"""One report of an evaluated split, for ``json.dumps`` and for a terminal. Conventions as in :mod:`racnn.evaluation.metrics`."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from racnn.data.listing import describe_passed
from racnn.evaluation.metrics import (
    check_scores,
    confusion,
    expected_calibration_error,
    focus_points,
    fraction,
    localisation,
    most_confused,
    per_class,
    rank_of_truth,
    region_statistics,
    wilson_interval,
)
from racnn.evaluation.table import table
from racnn.sections import ModelSection

FEW = 200  # photos, of which the 95 % interval of top-1 is up to 14 points wide


@dataclass
class Predictions:
    """What a network said of every photo of a split, on the CPU; lists hold one entry a scale or region."""

    logits: list[Tensor]  # [N, C] per scale
    fused: Tensor | None  # [N, C] logits of the fused classifier
    labels: Tensor  # [N] integers in [0, C)
    proposals: list[Tensor]  # [N, 3] per region after the first, in the frame that ``frames`` gives
    regions: list[Tensor]  # [N, 3] in the frame of the source, the whole image first
    boxes: Tensor  # [N, 4] xyxy of the objects in the frame of the source, NaN where unknown
    parts: Tensor  # [N, P, 3] of (x, y, visible) in the frame of the source; P may be 0
    descriptors: list[Tensor] = field(default_factory=list)  # [N, D] per scale, where they were asked for
    pseudo_boxes: Tensor | None = None  # [N, 4], those that the photos brought along for an APN to learn
    frames: list[Tensor] = field(default_factory=list)  # [N, 3] per proposal, the region of that view

    def __post_init__(self) -> None:
        # the view before, where nothing is said
        self.frames = self.frames or self.regions[: len(self.proposals)]


def evaluation_report(
    predictions: Predictions,
    *,
    dataset: str,
    split: str,
    class_names: Sequence[str],
    bounds: Sequence[tuple[float, float]],
    focus_parts: Sequence[int] = (),
) -> dict[str, Any]:
    """Return everything that is reported about one evaluated split, ready for ``json.dumps``.

    Args:
        predictions: On its photos.
        dataset: Name of the data set.
        split: Name of the split.
        class_names: C names.
        bounds: The range of tl, per region.
        focus_parts: Indices of the parts whose mean is the telling point.

    Returns:
        ``dataset, split, num_images, num_classes``; ``top1`` and ``top1_interval`` with ``scale_s``, ``scale_1+2``
        (mean of two probabilities, from two scales on), ``mean`` (of all scales' probabilities) and ``fused``;
        ``top5, ece`` and ``log_prob`` (mean log-probability of the true class) with the same keys but ``scale_1+2``;
        ``per_class``; ``confusion``, the ``counts`` of the ``answer`` of all looks together as ``[label, answer, photos]``
        without zeros, numbers being positions in ``per_class``; ``most_confused``, see
        :func:`racnn.evaluation.metrics.most_confused`; ``localisation`` and ``regions`` with ``region_1``, ... Fractions, not percents.

    Raises:
        ValueError: There are no photos, the shapes do not fit, or logits are not finite.
    """
    labels = predictions.labels.detach().cpu().long()
    log_probs = _answers(predictions, labels, len(class_names))
    ranks = {key: rank_of_truth(values, labels) for key, values in log_probs.items()}
    single = [key for key in ranks if key != "scale_1+2"]
    points = focus_points(predictions.parts, focus_parts)
    n = len(labels)
    combined = "fused" if "fused" in log_probs else "mean"
    counts = confusion(log_probs[combined].argmax(dim=1), labels, len(class_names))
    return {
        "dataset": dataset,
        "split": split,
        "num_images": n,
        "num_classes": len(class_names),
        "top1": {key: fraction(rank == 0) for key, rank in ranks.items()},
        "top1_interval": {key: wilson_interval(int((rank == 0).sum()), n) for key, rank in ranks.items()},
        "top5": {key: fraction(ranks[key] < 5) for key in single},
        "ece": {key: expected_calibration_error(log_probs[key].exp(), labels) for key in single},
        "log_prob": {key: float(log_probs[key].gather(1, labels[:, None]).mean()) for key in single},
        "per_class": per_class({key: ranks[key] == 0 for key in single}, labels, class_names),
        "confusion": {"answer": combined, "counts": counts},
        "most_confused": most_confused(counts, class_names),
        "localisation": {
            f"region_{s}": localisation(region, predictions.boxes, points, parent)
            for s, (region, parent) in enumerate(
                zip(predictions.regions[1:], predictions.frames, strict=False), start=1
            )
        },
        "regions": {
            f"region_{s}": region_statistics(region, limits)
            for s, (region, limits) in enumerate(zip(predictions.proposals, bounds, strict=True), start=1)
        },
    }


def format_report(report: Mapping[str, Any]) -> str:
    """Return a report of :func:`evaluation_report` as plain text for a terminal, percents in tables under 90 columns."""
    title = f"{report['dataset']}, {report['split']}: {report['num_images']} photos, {report['num_classes']} classes"
    many = report["num_classes"] > 5  # of fewer, the first five hold every true class
    head = ["answer", "top-1 %", "95 % interval", *(["top-5 %"] if many else []), "ECE %", "log-prob"]
    rows = [
        [
            key,
            _percent(top1),
            "{:6.2f} - {:6.2f}".format(*(100 * end for end in report["top1_interval"][key])),
            *([_percent(report["top5"].get(key))] if many else []),
            _percent(report["ece"].get(key)),
            _number(report["log_prob"].get(key)),
        ]
        for key, top1 in report["top1"].items()
    ]
    blocks = [title, table(head, rows, strong="fused")]
    found = {key: values for key, values in report["localisation"].items() if values}
    if found:
        # "centred": the same of a box of that size in the middle
        head = ["object, part", "IoU (centred)", "coverage % (centred)", "pointing %", "part hit % (centred)"]
        rows = [
            [
                name,
                _beside_centred(values, "iou", _number),
                _beside_centred(values, "coverage", _percent),
                _percent(values.get("pointing")),
                _beside_centred(values, "part_hit", _percent),
            ]
            for name, values in found.items()
        ]
        blocks.append(table(head, rows))
    if report["regions"]:
        head = ["region", "tx", "+-", "ty", "+-", "tl", "+-", "at bound %"]
        columns = tuple(f"{axis}_{what}" for axis in ("tx", "ty", "tl") for what in ("mean", "std"))
        rows = [
            [name, *(_number(values[key]) for key in columns), _percent(values["at_bound"])]
            for name, values in report["regions"].items()
        ]
        blocks.append(table(head, rows))
    return "\n\n".join(blocks)


def answer_in_words(key: str, model: ModelSection) -> str:
    """Return what an answer of a report is of: ``fused``, ``mean``, ``scale_1``, ..."""
    if not key.startswith("scale_"):
        return "all looks together"
    number = int(key.removeprefix("scale_"))
    if number == 1:
        return "one look at the whole photo" if model.first_is_whole else "the first look"
    return f"the first {number} looks" if model.remembers else f"look {number} by itself"


def format_gain(report: Mapping[str, Any], model: ModelSection) -> str:
    """Return in words what looking closer was worth on the photos of a report, beside one look."""
    top1, num = report["top1"], report["num_images"]
    name = "fused" if "fused" in top1 else "mean"
    low, high = (100 * end for end in report["top1_interval"][name])
    gained = round(num * (top1[name] - top1["scale_1"]))
    lines = [f"{answer_in_words('scale_1', model)} answers {100 * top1['scale_1']:.1f} % right"]
    if len(report["regions"]):
        lines[0] += (
            f", all {len(report['regions']) + 1} looks together {100 * top1[name]:.1f} %: {gained:+d} of {num} photos"
        )
    if num < FEW:
        lines.append(
            f"{num} photos are few: the {100 * top1[name]:.1f} % may be anything from {low:.0f} to {high:.0f} % (95 % interval)"
        )
    early = report.get("early_exit")
    if early and early["cost"] < 0.95:
        lines.append(
            f"looking closer only where it needs to (`racnn predict --early-exit`): {100 * early['top1']:.1f} % "
            f"at {100 * early['cost']:.0f} % of the multiplications"
        )
    return "\n".join(lines)


def notes(report: Mapping[str, Any], *, on_other_photos: bool) -> list[str]:
    """Return what must be known of the measured photos: left out, trained on, copies, and what lies beside them.

    Args:
        report: From :func:`racnn.engine.evaluator.measure_trained`.
        on_other_photos: Whether a folder or list was named.
    """
    lines = []
    if report["num_skipped"]:
        lines.append(f"{report['num_skipped']} damaged photos of the data set were left out")
    number = report.get("num_trained_on")
    seen = f"{number} of the {report['num_images']} photos are photos that the network was trained on"
    if number:
        lines.append(f"{seen}: on these the figures are too good")
    elif number == 0 and on_other_photos:
        lines.append(seen)
    elif on_other_photos:
        lines.append(
            "whether the network was trained on some of these photos is not known: the checkpoint does not say what it saw"
        )
    elif report["split"] in ("train", "all"):
        lines.append(
            "some or all of these photos are photos that the network was trained on: on these the figures are too good"
        )
    lines += [f"warning: {warning}" for warning in report.get("warnings", ())]
    if report.get("passed_over"):
        lines.append(describe_passed(Counter(report["passed_over"])))
    return lines


def format_confused(report: Mapping[str, Any], most: int = 5) -> str:
    """Return the pairs of classes that are confused most, one a line; nothing where none is."""
    lines = [
        "{:3d}  {}, {}  ({} of {} and {} of {})".format(
            sum(row["photos"]),
            *row["classes"],
            *(number for pair in zip(row["photos"], row["of"], strict=True) for number in pair),
        )
        for row in report["most_confused"][:most]
    ]
    return "\n".join(["photos of a class that were taken for the other:", *lines]) if lines else ""


def _answers(predictions: Predictions, labels: Tensor, classes: int) -> dict[str, Tensor]:
    """Return the log-probabilities [N, C] of every way to answer, in the order they are reported."""
    given = {f"scale_{s}": logits for s, logits in enumerate(predictions.logits, start=1)}
    if predictions.fused is not None:
        given["fused"] = predictions.fused
    for key, values in given.items():
        if values.ndim != 2 or values.shape[1] != classes:
            raise ValueError(f"logits of {key} must be [N, {classes}], got {list(values.shape)}")
        if not values.isfinite().all():
            raise ValueError(f"logits of {key} hold values that are not finite")
        given[key] = check_scores(values, labels).log_softmax(dim=1)
    last = {"fused": given.pop("fused")} if predictions.fused is not None else {}
    scales = list(given.values())
    both = {"scale_1+2": _mean_of_probs(scales[:2])} if len(scales) >= 2 else {}
    return given | both | {"mean": _mean_of_probs(scales)} | last


def _mean_of_probs(log_probs: Sequence[Tensor]) -> Tensor:
    """Return the log of the mean probability, finite also where the probabilities underflow."""
    return torch.stack(list(log_probs)).logsumexp(dim=0) - math.log(len(log_probs))


def _beside_centred(values: Mapping[str, Any], key: str, form: Callable[[float | None], str]) -> str:
    centred = values.get(f"{key}_centred")
    return form(values.get(key)) + (f" ({form(centred)})" if centred is not None else "")


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
