"""How good the answers and the boxes are: accuracy, calibration, localisation, statistics of regions, one report.

Pure functions of tensors; everything is computed in float64 on the CPU whatever comes in, and every fraction is in
[0, 1]. Among equal scores the class with the lower index comes first, so a number never depends on the machine.

Convention
    A region is [N, 3] = (tx, ty, tl) and covers (tx - tl, ty - tl, tx + tl, ty + tl). Boxes are [N, 4] xyxy and
    points [N, 2] (x, y), x right, y down, in the frame of the source image: [-1, 1], the outer corners at +-1.
    Shares of areas do not change when both axes are scaled, so an overlap in the squashed square source is the
    overlap in the photo. NaN means unknown: such rows are left out, and what is known nowhere is None.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

AT_BOUND = 0.02  # a side is at a bound within this share of the range: a sigmoid never touches it


def topk_accuracy(scores: Tensor, labels: Tensor, k: int = 1) -> float:
    """Return the share of photos whose true class is among the ``k`` highest scores.

    Args:
        scores: [N, C] logits or probabilities.
        labels: [N] integers in [0, C).
        k: At least 1; more than C is C.

    Returns:
        A fraction in [0, 1].

    Raises:
        ValueError: ``k`` is below 1, there are no photos, or the shapes do not fit.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    return _share(_rank_of_truth(_check_scores(scores, labels), labels) < k)


def wilson_interval(correct: int, n: int) -> list[float]:
    """Return the 95 % Wilson score interval of a share, ``[low, high]`` in [0, 1].

    Unlike the normal approximation it stays inside [0, 1] and is not empty at 0 or n correct. With ``n`` 0 nothing is
    known: [0, 1].

    Raises:
        ValueError: ``correct`` is not in [0, n].
    """
    if not 0 <= correct <= n:
        raise ValueError(f"correct must be in [0, n], got correct={correct} and n={n}")
    if n == 0:
        return [0.0, 1.0]
    z = 1.959963984540054  # the 97.5 % quantile of the normal distribution
    share, spread = correct / n, 1.0 + z * z / n
    centre = (share + z * z / (2 * n)) / spread
    half = z * math.sqrt(share * (1.0 - share) / n + z * z / (4 * n * n)) / spread
    low = 0.0 if correct == 0 else centre - half  # exact at the ends, where rounding would leave 1e-17
    high = 1.0 if correct == n else centre + half
    return [low, high]


def expected_calibration_error(probs: Tensor, labels: Tensor, bins: int = 15) -> float:
    """Return the mean gap between confidence and accuracy over bins of equal width, weighted by their photos.

    Confidence is the highest probability; bin b holds confidences in (b / bins, (b + 1) / bins].

    Args:
        probs: [N, C] probabilities.
        labels: [N] integers in [0, C).
        bins: Number of bins.

    Returns:
        A fraction in [0, 1]; 0 is perfectly calibrated.

    Raises:
        ValueError: There are no photos, or the shapes do not fit.
    """
    probs = _check_scores(probs, labels)
    confidence = probs.amax(dim=1)
    correct = (_rank_of_truth(probs, labels) == 0).double()
    index = ((confidence * bins).ceil().long() - 1).clamp(0, bins - 1)
    gap = torch.bincount(index, weights=correct - confidence, minlength=bins)
    return float(gap.abs().sum() / len(probs))


def per_class(
    correct: Mapping[str, Tensor], labels: Tensor, class_names: Sequence[str]
) -> list[dict[str, Any]]:
    """Return one row per class: ``name``, ``n`` photos, and how many were right under each key of ``correct``.

    Args:
        correct: From a name such as ``scale_1`` to [N] booleans.
        labels: [N] integers in [0, C).
        class_names: C names.
    """
    labels = labels.detach().cpu().long()
    classes = len(class_names)
    n = torch.bincount(labels, minlength=classes).tolist()
    right = {
        key: torch.bincount(labels[hit.cpu()], minlength=classes).tolist() for key, hit in correct.items()
    }
    return [
        {"name": name, "n": n[c], "correct": {key: counts[c] for key, counts in right.items()}}
        for c, name in enumerate(class_names)
    ]


def focus_points(parts: Tensor, focus_parts: Sequence[int]) -> Tensor:
    """Return the point that tells a photo's class: the mean of the focus parts visible in it.

    Args:
        parts: [N, P, 3] of (x, y, visible 0 or 1).
        focus_parts: Indices of the parts to average, may be empty.

    Returns:
        [N, 2] float64 points in the frame of ``parts``, NaN where none of them is visible.
    """
    chosen = _exact(parts)[:, list(focus_parts)]  # [N, F, 3]
    xy = chosen[..., :2]
    visible = (chosen[..., 2:] > 0.5) & xy.isfinite().all(dim=-1, keepdim=True)
    return torch.where(visible, xy, 0.0).sum(dim=1) / visible.sum(dim=1)  # 0 / 0 is NaN


OVERLAPS = ("iou", "iou_50", "coverage", "pointing", "iou_centred", "coverage_centred")


def localisation(
    regions: Tensor, boxes: Tensor, points: Tensor | None = None, parents: Tensor | None = None
) -> dict[str, float | None] | None:
    """Measure how well regions find the object, and the part that tells its class.

    ``iou`` mean intersection over union with the object's box, ``iou_50`` share of photos where it is at least 0.5,
    ``coverage`` mean share of the object's box inside the region, ``pointing`` share of photos where the region's
    centre lies in the object's box. ``part_hit`` share of photos with a known part whose point lies in the region.
    ``iou_centred``, ``coverage_centred`` and ``part_hit_centred`` are the same for a region of the same side in the middle
    of the parent region: what a box that looks at nothing would reach.

    Args:
        regions: [N, 3] in the frame of the source.
        boxes: [N, 4] xyxy in the frame of the source, NaN (or no area) where unknown.
        points: [N, 2] in the frame of the source, NaN where unknown; None is unknown everywhere.
        parents: [N, 3] the regions that ``regions`` were cut from, in the frame of the source; None is all of it.

    Returns:
        The measures, fractions in [0, 1], None for those whose annotation is known nowhere; ``part_hit`` and
        ``part_hit_centred`` only where a point is known. None if nothing is known.
    """
    regions, boxes = _exact(regions), _exact(boxes)
    known = boxes.isfinite().all(dim=1) & (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
    points = torch.full((len(regions), 2), math.nan) if points is None else _exact(points)
    parents = torch.zeros_like(regions) if parents is None else _exact(parents)
    centred = torch.cat([parents[:, :2], regions[:, 2:]], dim=1)
    report: dict[str, float | None] = dict.fromkeys(OVERLAPS)
    if known.any():
        report.update(_overlap(regions[known], boxes[known]))
        middle = _overlap(centred[known], boxes[known])
        report.update({f"{key}_centred": middle[key] for key in ("iou", "coverage")})
    marked = points.isfinite().all(dim=1)
    if marked.any():
        report["part_hit"] = _share(_holds(regions[marked], points[marked]))
        report["part_hit_centred"] = _share(_holds(centred[marked], points[marked]))
    return report if known.any() or marked.any() else None


def region_statistics(region: Tensor, bounds: tuple[float, float]) -> dict[str, float]:
    """Summarise what an attention proposal network proposes, to see at once whether it has collapsed.

    Args:
        region: [N, 3] in the frame of its parent.
        bounds: Least and largest ``tl`` that the network can propose.

    Returns:
        Mean and standard deviation (of the photos given, so 0 for one photo) of tx, ty and tl in the parent's frame,
        and ``at_bound``: the share of photos whose tl is within 2 % of the range from either bound.
    """
    region = _exact(region)
    low, high = bounds
    report: dict[str, float] = {}
    for name, values in zip(("tx", "ty", "tl"), region.unbind(dim=1), strict=True):
        report[f"{name}_mean"] = float(values.mean())
        report[f"{name}_std"] = float(values.std(correction=0))
    margin = AT_BOUND * (high - low)
    report["at_bound"] = _share((region[:, 2] <= low + margin) | (region[:, 2] >= high - margin))
    return report


def evaluation_report(
    *,
    dataset: str,
    split: str,
    class_names: Sequence[str],
    logits: Mapping[str, Tensor],
    fused: Tensor | None,
    labels: Tensor,
    regions: Sequence[Tensor],
    composed: Sequence[Tensor],
    bounds: Sequence[tuple[float, float]],
    boxes: Tensor,
    parts: Tensor,
    focus_parts: Sequence[int],
) -> dict[str, Any]:
    """Return everything that is reported about one evaluated split, ready for ``json.dumps``.

    Args:
        dataset: Name of the data set.
        split: Name of the split.
        class_names: C names.
        logits: ``scale_1``, ``scale_2``, ... to [N, C].
        fused: [N, C] logits of the fused classifier, if there is one.
        labels: [N] integers in [0, C).
        regions: [N, 3] per region, each in the frame of its parent view.
        composed: The same regions in the frame of the source.
        bounds: The range of tl, per region.
        boxes: [N, 4] xyxy in the frame of the source, NaN where unknown.
        parts: [N, P, 3] of (x, y, visible) in the frame of the source; P may be 0.
        focus_parts: Indices of the parts whose mean is the telling point.

    Returns:
        ``dataset, split, num_images, num_classes``; ``top1`` and ``top1_interval`` with ``scale_s``, ``scale_1+2``
        (mean of two probabilities, from two scales on), ``mean`` (of all scales' probabilities) and ``fused``;
        ``top5, ece`` and ``log_prob`` (mean log-probability of the true class) with the same keys but ``scale_1+2``;
        ``per_class``; ``localisation`` and ``regions`` with ``region_1``, ... Fractions, not percents.

    Raises:
        ValueError: There are no photos, the shapes do not fit, or logits are not finite.
    """
    labels = labels.detach().cpu().long()
    log_probs = _answers(logits, fused, labels, len(class_names))
    ranks = {key: _rank_of_truth(values, labels) for key, values in log_probs.items()}
    single = [key for key in ranks if key != "scale_1+2"]
    points = focus_points(parts, focus_parts)
    parents = [None, *composed[:-1]]  # region_1 is cut from the whole source
    n = len(labels)
    return {
        "dataset": dataset,
        "split": split,
        "num_images": n,
        "num_classes": len(class_names),
        "top1": {key: _share(rank == 0) for key, rank in ranks.items()},
        "top1_interval": {key: wilson_interval(int((rank == 0).sum()), n) for key, rank in ranks.items()},
        "top5": {key: _share(ranks[key] < 5) for key in single},
        "ece": {key: expected_calibration_error(log_probs[key].exp(), labels) for key in single},
        "log_prob": {key: float(log_probs[key].gather(1, labels[:, None]).mean()) for key in single},
        "per_class": per_class({key: ranks[key] == 0 for key in single}, labels, class_names),
        "localisation": {
            f"region_{s}": localisation(region, boxes, points, parent)
            for s, (region, parent) in enumerate(zip(composed, parents, strict=False), start=1)
        },
        "regions": {
            f"region_{s}": region_statistics(region, limits)
            for s, (region, limits) in enumerate(zip(regions, bounds, strict=True), start=1)
        },
    }


def format_report(report: Mapping[str, Any]) -> str:
    """Return a report of :func:`evaluation_report` as plain text for a terminal, percents in tables under 90 columns."""
    title = f"{report['dataset']}, {report['split']}: {report['num_images']} photos, {report['num_classes']} classes"
    head = ["answer", "top-1 %", "95 % interval", "top-5 %", "ECE %", "log-prob"]
    rows = [
        [
            key,
            _percent(top1),
            "{:6.2f} - {:6.2f}".format(*(100 * end for end in report["top1_interval"][key])),
            _percent(report["top5"].get(key)),
            _percent(report["ece"].get(key)),
            _number(report["log_prob"].get(key)),
        ]
        for key, top1 in report["top1"].items()
    ]
    blocks = [title, _table(head, rows)]
    found = {key: values for key, values in report["localisation"].items() if values}
    if found:
        # "centred": the same of a box of that size in the middle
        head = ["object, part", "IoU", "centred", "coverage %", "centred %"]
        head += ["pointing %", "part hit %", "centred %"]
        keys = ("coverage", "coverage_centred", "pointing", "part_hit", "part_hit_centred")
        rows = [
            [
                name,
                _number(values["iou"]),
                _number(values.get("iou_centred")),
                *(_percent(values.get(k)) for k in keys),
            ]
            for name, values in found.items()
        ]
        blocks.append(_table(head, rows))
    if report["regions"]:
        head = ["region", "tx", "+-", "ty", "+-", "tl", "+-", "at bound %"]
        columns = tuple(f"{axis}_{what}" for axis in ("tx", "ty", "tl") for what in ("mean", "std"))
        rows = [
            [name, *(_number(values[key]) for key in columns), _percent(values["at_bound"])]
            for name, values in report["regions"].items()
        ]
        blocks.append(_table(head, rows))
    return "\n\n".join(blocks)


def _exact(values: Tensor) -> Tensor:
    return values.detach().to("cpu", torch.float64)


def _share(hits: Tensor) -> float:
    return int(hits.sum()) / len(hits)


def _check_scores(scores: Tensor, labels: Tensor) -> Tensor:
    """Return the scores in float64 if they fit the labels."""
    if scores.ndim != 2 or scores.shape[0] == 0 or labels.shape != scores.shape[:1]:
        raise ValueError(
            f"expected scores [N, C] and labels [N], N > 0, got {list(scores.shape)} and {list(labels.shape)}"
        )
    if int(labels.min()) < 0 or int(labels.max()) >= scores.shape[1]:
        raise ValueError(
            f"labels must be in [0, {scores.shape[1]}), got {int(labels.min())} to {int(labels.max())}"
        )
    return _exact(scores)


def _rank_of_truth(scores: Tensor, labels: Tensor) -> Tensor:
    """Return how many classes come before the true one, [N]; a lower index comes first among equal scores."""
    labels = labels.detach().cpu().long()[:, None]
    truth = scores.gather(1, labels)
    earlier = torch.arange(scores.shape[1]) < labels
    return ((scores > truth) | ((scores == truth) & earlier)).sum(dim=1)


def _answers(
    logits: Mapping[str, Tensor], fused: Tensor | None, labels: Tensor, classes: int
) -> dict[str, Tensor]:
    """Return the log-probabilities of every way to answer, in the order they are reported."""
    given = dict(logits) if fused is None else {**logits, "fused": fused}
    answers: dict[str, Tensor] = {}
    for key, values in given.items():
        if values.ndim != 2 or values.shape[1] != classes:
            raise ValueError(f"logits of {key} must be [N, {classes}], got {list(values.shape)}")
        if not values.isfinite().all():
            raise ValueError(f"logits of {key} hold values that are not finite")
        answers[key] = _check_scores(values, labels).log_softmax(dim=1)
    last = answers.pop("fused", None)
    scales = list(answers.values())
    if len(scales) >= 2:
        answers["scale_1+2"] = _mean_of_probs(scales[:2])
    answers["mean"] = _mean_of_probs(scales)
    if last is not None:
        answers["fused"] = last
    return answers


def _mean_of_probs(log_probs: Sequence[Tensor]) -> Tensor:
    """Return the log of the mean probability, finite also where the probabilities underflow."""
    return torch.stack(list(log_probs)).logsumexp(dim=0) - math.log(len(log_probs))


def _overlap(regions: Tensor, boxes: Tensor) -> dict[str, float]:
    """Compare regions with boxes that are all known."""
    centre, half = regions[:, :2], regions[:, 2:]
    low, high = torch.maximum(centre - half, boxes[:, :2]), torch.minimum(centre + half, boxes[:, 2:])
    inter = (high - low).clamp(min=0.0).prod(dim=1)
    object_area = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1)
    iou = inter / ((2.0 * half[:, 0]) ** 2 + object_area - inter)
    inside = ((boxes[:, :2] <= centre) & (centre <= boxes[:, 2:])).all(dim=1)
    return {
        "iou": float(iou.mean()),
        "iou_50": _share(iou >= 0.5),
        "coverage": float((inter / object_area).mean()),
        "pointing": _share(inside),
    }


def _holds(regions: Tensor, points: Tensor) -> Tensor:
    """Return whether each region holds its point, [N]."""
    return ((points - regions[:, :2]).abs() <= regions[:, 2:]).all(dim=1)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lay out a table: the first column to the left, the others to the right, a rule under the head."""
    widths = [max(len(row[c]) for row in (head, *rows)) for c in range(len(head))]
    widths[0] = max(widths[0], 12)  # so that the tables of a report start alike
    lines = [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))]
        )
        for row in (head, *rows)
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])
