"""Compare what several networks said of the same photos: the rows of ``predictions.jsonl``, one list a network."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from racnn.errors import DataError
from racnn.evaluation.chart import Dot, cost_chart
from racnn.evaluation.draw import SCALE_COLORS
from racnn.evaluation.metrics import fraction, paired_difference, wilson_interval
from racnn.evaluation.photo_rows import PhotoRow
from racnn.evaluation.table import table

MOST_LETTERS = 28  # of a name in the legend of the picture


def compare(every: Mapping[str, Sequence[PhotoRow]]) -> dict[str, Any]:
    """Return what networks said of the photos that all of them were shown, in plain types.

    Args:
        every: The rows of each network, by its name; the first is what the others are compared with.

    Returns:
        ``num_images``, the photos that all have, and ``left_out``, how many each has besides; ``splits`` of each; ``networks``, a row each:
        ``name, top1, top1_interval, log_prob, multiplications, iou`` and ``pointing`` (by region, None where no object is
        annotated), and but for the first ``won`` and ``lost``, photos that it answers right and the first wrong and the other way
        round, ``difference`` in top-1 with its 95 % interval, and ``p`` of McNemar's exact test.

    Raises:
        DataError: A photo is twice in the rows of a network, or they are of several networks; no photo is in all of them, or a photo has another class in one of them.
    """
    found = {name: {row.photo: row for row in rows} for name, rows in every.items()}
    for name, rows in every.items():
        if len(found[name]) < len(rows) or len({row.network for row in rows}) > 1:
            raise DataError(
                f"{name}: expected one row a photo, of one network: two files may have been joined"
            )
    (first, *_), shared = found, set.intersection(*(set(rows) for rows in found.values()))
    if not shared:
        raise DataError(f"no photo is in all of {', '.join(found)}: they were shown different photos")
    photos = [photo for photo in found[first] if photo in shared]
    chosen = {name: [rows[photo] for photo in photos] for name, rows in found.items()}
    for name, rows in chosen.items():
        for row, ours in zip(rows, chosen[first], strict=True):
            if row.label != ours.label:
                raise DataError(
                    f"photo '{row.photo}' is of class '{ours.label}' in {first}, of class '{row.label}' in {name}"
                )
    base = _right(chosen[first])
    networks = []
    for name, rows in chosen.items():
        right = _right(rows)
        network: dict[str, Any] = {
            "name": name,
            "top1": fraction(right),
            "top1_interval": wilson_interval(int(right.sum()), len(right)),
            "log_prob": sum(math.log(max(row.answer.of_label, 1e-45)) for row in rows) / len(rows),
            "multiplications": sum(row.multiplications for row in rows) / len(rows),
            **_localisation(rows),
        }
        if name != first:
            won, lost = int((right & ~base).sum()), int((base & ~right).sum())
            network |= {
                "won": won,
                "lost": lost,
                "difference": list(paired_difference(right, base)),
                "p": mcnemar(won, lost),
            }
        networks.append(network)
    left_out = {name: len(rows) - len(photos) for name, rows in found.items()}
    splits = {name: sorted({row.split for row in rows}) for name, rows in chosen.items()}
    return {"num_images": len(photos), "left_out": left_out, "splits": splits, "networks": networks}


def mcnemar(won: int, lost: int) -> float:
    """Return the two-sided p of McNemar's exact test: how likely so uneven a split is of the photos that only one gets right."""
    if not won + lost:
        return 1.0
    from scipy.stats import binomtest  # takes a second to import

    return float(binomtest(won, won + lost, 0.5).pvalue)


def format_comparison(found: Mapping[str, Any]) -> str:
    """Return a comparison as plain text: a row a network, and below what each is beside the first."""
    networks = found["networks"]
    regions = max((len(network["iou"]) for network in networks), default=0)
    annotated = any(iou is not None for network in networks for iou in network["iou"])
    head = ["network", "top-1 %", "95 % interval", "log-prob", "G mult."]
    head += [f"IoU {number}" for number in range(1, regions + 1)] if annotated else []
    rows = []
    for network in networks:
        low, high = network["top1_interval"]
        row = [
            network["name"],
            f"{100 * network['top1']:.2f}",
            f"{100 * low:.2f} - {100 * high:.2f}",
            f"{network['log_prob']:.3f}",
            f"{network['multiplications'] / 1e9:.3g}",
        ]
        if annotated:
            overlaps = [*network["iou"], *[None] * (regions - len(network["iou"]))]
            row += ["-" if iou is None else f"{iou:.3f}" for iou in overlaps]
        rows.append(row)
    lines = [f"{found['num_images']} photos", "", table(head, rows), ""]
    first = networks[0]["name"]
    for network in networks[1:]:
        mean, low, high = (100 * value for value in network["difference"])
        lines.append(
            f"{network['name']} beside {first}: {mean:+.2f} points (95 %: {low:+.2f} to {high:+.2f}); {network['won']} photos "
            f"won, {network['lost']} lost, p {network['p']:.2g} (McNemar)"
        )
    if any(found["left_out"].values()):
        extra = ", ".join(f"{number} of {name}" for name, number in found["left_out"].items() if number)
        lines.append(f"photos that not all were shown are left out: {extra}")
    for name, splits in found["splits"].items():
        if not set(splits) <= {"val", "test"}:
            lines.append(f"{name} may have been trained on these photos (split {', '.join(splits)})")
    return "\n".join(lines)


def picture(found: Mapping[str, Any]) -> str:
    """Return what networks cost and how often they are right as an SVG."""
    dots = []
    for number, network in enumerate(found["networks"]):
        red, green, blue = SCALE_COLORS[number % len(SCALE_COLORS)]
        dots.append(
            Dot(
                cost=network["multiplications"],
                share=network["top1"],
                interval=tuple(network["top1_interval"]),
                label=str(number + 1),
                title=f"{network['name']}: {100 * network['top1']:.2f} %",
                color=f"rgb({red},{green},{blue})",
            )
        )
    caption = (
        f"multiplications per photo (logarithmic); top-1 of {found['num_images']} photos, 95 % intervals"
    )
    legend = {}
    for number, dot in enumerate(dots):
        name = found["networks"][number]["name"]
        legend[f"{number + 1}  {name if len(name) <= MOST_LETTERS else f'...{name[3 - MOST_LETTERS :]}'}"] = (
            dot.color
        )
    return cost_chart(dots, legend=legend, caption=caption)


def _right(rows: Sequence[PhotoRow]) -> Tensor:
    return torch.tensor([row.right for row in rows])


def _localisation(rows: Sequence[PhotoRow]) -> dict[str, list[float | None]]:
    """Return the mean overlap with the object of each region, and how often its middle lies in the object."""
    known = [row for row in rows if row.object_xyxy is not None]
    regions = min((len(row.boxes_xyxy) for row in rows), default=0)
    if not known:
        return {"iou": [None] * regions, "pointing": [None] * regions}
    objects = torch.tensor([row.object_xyxy for row in known], dtype=torch.float64)
    iou, pointing = list[float | None](), list[float | None]()
    for number in range(regions):
        boxes = torch.tensor([row.boxes_xyxy[number] for row in known], dtype=torch.float64)
        low, high = torch.maximum(boxes[:, :2], objects[:, :2]), torch.minimum(boxes[:, 2:], objects[:, 2:])
        inter = (high - low).clamp(min=0.0).prod(dim=1)
        union = _area(boxes) + _area(objects) - inter
        middle = (boxes[:, :2] + boxes[:, 2:]) / 2
        iou.append(float((inter / union.clamp(min=1e-12)).mean()))
        inside = (objects[:, :2] <= middle) & (middle <= objects[:, 2:])
        pointing.append(fraction(inside.all(dim=1)))
    return {"iou": iou, "pointing": pointing}


def _area(boxes: Tensor) -> Tensor:
    return (boxes[:, 2:] - boxes[:, :2]).clamp(min=0.0).prod(dim=1)
