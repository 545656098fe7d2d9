"""How good the answers and the boxes are: accuracy, calibration, localisation, statistics of regions.

Pure functions of tensors; everything is computed in float64 on the CPU whatever comes in, and every fraction is in
[0, 1]. Among equal scores the class with the lower index comes first, so a number never depends on the machine.

Convention
    Scores are [N, C] logits or probabilities, labels [N] integers in [0, C). A region is [N, 3] = (tx, ty, tl) and covers
    (tx - tl, ty - tl, tx + tl, ty + tl), or a rectangle [N, 4], see :mod:`racnn.ops.regions`. Boxes are [N, 4] xyxy and points [N, 2] (x, y), x right, y down, in the frame of
    the source image: [-1, 1], the outer corners at +-1. Shares of areas do not change when both axes are scaled, so an
    overlap in the squashed square source is the overlap in the photo. NaN means unknown: such rows are left out, and what
    is known nowhere is None.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from racnn.ops.regions import halves

MOST_PAIRS = 20  # of classes that are taken for one another
AT_BOUND = 0.02  # a side is at a bound within this share of the range: a sigmoid never touches it


def topk_accuracy(scores: Tensor, labels: Tensor, k: int = 1) -> float:
    """Return the share of photos whose true class is among the ``k`` highest scores; ``k`` above C is C.

    Raises:
        ValueError: ``k`` is below 1, there are no photos, or the shapes do not fit.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    return fraction(rank_of_truth(check_scores(scores, labels), labels) < k)


def check_scores(scores: Tensor, labels: Tensor) -> Tensor:
    """Return scores [N, C] in float64 on the CPU.

    Raises:
        ValueError: There are no photos, the shapes do not fit, or a label is not in [0, C).
    """
    if scores.ndim != 2 or scores.shape[0] == 0 or labels.shape != scores.shape[:1]:
        raise ValueError(
            f"expected scores [N, C] and labels [N], N > 0, got {list(scores.shape)} and {list(labels.shape)}"
        )
    if int(labels.min()) < 0 or int(labels.max()) >= scores.shape[1]:
        raise ValueError(
            f"labels must be in [0, {scores.shape[1]}), got {int(labels.min())} to {int(labels.max())}"
        )
    return _exact(scores)


def rank_of_truth(scores: Tensor, labels: Tensor) -> Tensor:
    """Return how many classes come before the true one, [N] integers."""
    labels = labels.detach().cpu().long()[:, None]
    truth = scores.gather(1, labels)
    earlier = torch.arange(scores.shape[1]) < labels
    return ((scores > truth) | ((scores == truth) & earlier)).sum(dim=1)


def fraction(hits: Tensor) -> float:
    """Return the share of ``hits``, [N] booleans, that are true."""
    return int(hits.sum()) / len(hits)


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
    from scipy.stats import binomtest  # takes a second to import

    interval = binomtest(correct, n).proportion_ci(0.95, method="wilson")
    return [float(interval.low), float(interval.high)]


def paired_difference(ours: Tensor, others: Tensor) -> tuple[float, float, float]:
    """Return by how much one share of right answers exceeds another on the same photos, and its 95 % interval.

    Agresti and Min, "Simple improved confidence intervals for comparing matched proportions", Statistics in Medicine 24,
    2005: Wald's interval with half a photo added to each of the four outcomes, which holds for few photos too.

    Args:
        ours: bool [N], whether each photo was answered right.
        others: bool [N], of the same photos.
    """
    num = len(ours)
    won, lost = int((ours & ~others).sum()), int((others & ~ours).sum())
    mean = (won - lost) / (num + 2)
    error = math.sqrt(max((won + lost + 1) / (num + 2) - mean**2, 0.0) / (num + 2))
    return (won - lost) / num, mean - 1.96 * error, mean + 1.96 * error


def expected_calibration_error(probs: Tensor, labels: Tensor, bins: int = 15) -> float:
    """Return the mean gap between confidence and accuracy over bins of equal width, weighted by their photos.

    Confidence is the highest probability; bin b holds confidences in (b / bins, (b + 1) / bins]. 0 is perfectly calibrated.

    Raises:
        ValueError: There are no photos, or the shapes do not fit.
    """
    probs = check_scores(probs, labels)
    confidence = probs.amax(dim=1)
    correct = (rank_of_truth(probs, labels) == 0).double()
    index = ((confidence * bins).ceil().long() - 1).clamp(0, bins - 1)
    gap = torch.bincount(index, weights=correct - confidence, minlength=bins)
    return float(gap.abs().sum() / len(probs))


def per_class(
    correct: Mapping[str, Tensor], labels: Tensor, class_names: Sequence[str]
) -> list[dict[str, Any]]:
    """Return one row per class: ``name``, ``n`` photos, and how many were right under each key of ``correct``, [N] booleans."""
    labels = labels.detach().cpu().long()
    classes = len(class_names)
    n = torch.bincount(labels, minlength=classes).tolist()
    hits = (torch.bincount(labels[hit.cpu()], minlength=classes).tolist() for hit in correct.values())
    return [
        {"name": name, "n": number, "correct": dict(zip(correct, right, strict=True))}
        for name, number, *right in zip(class_names, n, *hits, strict=True)
    ]


def confusion(answers: Tensor, labels: Tensor, num_classes: int) -> list[list[int]]:
    """Return the confusion matrix without its zeros: ``[label, answer, photos]``, sorted.

    Args:
        answers: [N] classes that photos were taken for.
        labels: [N] their classes.
        num_classes: C.
    """
    cells, counts = (labels.cpu().long() * num_classes + answers.cpu().long()).unique(return_counts=True)
    pairs = zip(cells.tolist(), counts.tolist(), strict=True)
    return [[cell // num_classes, cell % num_classes, count] for cell, count in pairs]


def most_confused(counts: Sequence[Sequence[int]], class_names: Sequence[str]) -> list[dict[str, Any]]:
    """Return the pairs of classes that are taken for one another, the most photos first.

    Args:
        counts: From :func:`confusion`.
        class_names: C names.

    Returns:
        A row a pair: ``classes``, two names; ``photos`` of the first that were taken for the second, and the other way round;
        both classes have ``of`` so many photos.
    """
    total: dict[int, int] = defaultdict(int)
    pairs: dict[tuple[int, int], list[int]] = defaultdict(lambda: [0, 0])
    for label, answer, count in counts:
        total[label] += count
        if label != answer:
            pairs[min(label, answer), max(label, answer)][label > answer] += count
    rows = [
        {
            "classes": [class_names[first], class_names[second]],
            "photos": both,
            "of": [total[first], total[second]],
        }
        for (first, second), both in sorted(pairs.items(), key=lambda item: (-sum(item[1]), item[0]))
    ]
    return rows[:MOST_PAIRS]


def focus_points(parts: Tensor, focus_parts: Sequence[int]) -> Tensor:
    """Return the point that tells a photo's class: the mean of its focus parts that are visible, NaN where none is.

    Args:
        parts: [N, P, 3] of (x, y, visible 0 or 1).
        focus_parts: Indices of the parts to average, may be empty.

    Returns:
        [N, 2] float64 points in the frame of ``parts``.
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
        report |= {f"{key}_centred": middle[key] for key in ("iou", "coverage")}
    marked = points.isfinite().all(dim=1)
    if marked.any():
        report["part_hit"] = fraction(_holds(regions[marked], points[marked]))
        report["part_hit_centred"] = fraction(_holds(centred[marked], points[marked]))
    return report if known.any() or marked.any() else None


def region_statistics(region: Tensor, bounds: tuple[float, float]) -> dict[str, float]:
    """Summarise what an attention proposal network proposes, to see at once whether it has collapsed.

    Args:
        region: [N, 3] in the frame of the view that it was proposed from, or rectangles [N, 4].
        bounds: Least and largest side that the network can propose.

    Returns:
        ``tx_mean``, ``tx_std`` and so on: mean and standard deviation over the photos given (0 for one); ``at_bound``: the
        share of photos with a side within 2 % of the range from either bound. Of rectangles ``tl`` is the half side of the square
        of the same area, and there are ``sx`` and ``sy``.
    """
    region = _exact(region)
    low, high = bounds
    report: dict[str, float] = {}
    columns = dict(zip(("tx", "ty"), region.unbind(dim=1), strict=False))
    columns["tl"] = region[:, 2] if region.shape[1] == 3 else region[:, 2:].prod(dim=1).sqrt()
    if region.shape[1] == 4:
        columns |= {"sx": region[:, 2], "sy": region[:, 3]}
    for name, values in columns.items():
        report[f"{name}_mean"] = float(values.mean())
        report[f"{name}_std"] = float(values.std(correction=0))
    margin = AT_BOUND * (high - low)
    sides = region[:, 2:]
    report["at_bound"] = fraction(((sides <= low + margin) | (sides >= high - margin)).any(dim=1))
    return report


def _exact(values: Tensor) -> Tensor:
    return values.detach().to("cpu", torch.float64)


def _overlap(regions: Tensor, boxes: Tensor) -> dict[str, float]:
    """Compare regions with boxes that are all known."""
    centre, half = regions[:, :2], halves(regions)
    low, high = torch.maximum(centre - half, boxes[:, :2]), torch.minimum(centre + half, boxes[:, 2:])
    inter = (high - low).clamp(min=0.0).prod(dim=1)
    object_area = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1)
    iou = inter / ((2.0 * half).prod(dim=1) + object_area - inter)
    inside = ((boxes[:, :2] <= centre) & (centre <= boxes[:, 2:])).all(dim=1)
    return {
        "iou": float(iou.mean()),
        "iou_50": fraction(iou >= 0.5),
        "coverage": float((inter / object_area).mean()),
        "pointing": fraction(inside),
    }


def _holds(regions: Tensor, points: Tensor) -> Tensor:
    """Return whether each region holds its point, [N]."""
    return ((points - regions[:, :2]).abs() <= halves(regions)).all(dim=1)
