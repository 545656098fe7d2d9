"""Charts as SVG elements, for the inside of a page or as a file: how sure answers are, how training went."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from markupsafe import Markup, escape
from torch import Tensor

from racnn.evaluation.draw import SCALE_COLORS

LEFT, RIGHT, TOP, BOTTOM = 54, 350, 30, 210  # of the frame in a chart of 360 x 250 pixels
INK, QUIET, LINE = "#1d2530", "#6b7480", "#d9dee5"
BINS = 10


def color(number: int) -> str:
    """Return the colour of a scale, counted from 0."""
    red, green, blue = SCALE_COLORS[number % len(SCALE_COLORS)]
    return f"rgb({red},{green},{blue})"


def reliability(confidence: Tensor, right: Tensor) -> tuple[Markup, list[dict[str, float]]]:
    """Return a reliability diagram, and its bars.

    Args:
        confidence: [N], highest probabilities.
        right: bool [N].

    Returns:
        Of each bin that holds photos ``low, high, photos, confidence`` (mean) and ``right`` (share).
    """
    index = ((confidence.double() * BINS).ceil().long() - 1).clamp(0, BINS - 1)
    bars = []
    for number in range(BINS):
        own = index == number
        if own.any():
            bars.append(
                {
                    "low": number / BINS,
                    "high": (number + 1) / BINS,
                    "photos": int(own.sum()),
                    "confidence": float(confidence[own].double().mean()),
                    "right": float(right[own].double().mean()),
                }
            )
    most = max(bar["photos"] for bar in bars)
    parts = [_frame(0.0, 1.0, 0.2), _line([(0.0, 0.0), (1.0, 1.0)], QUIET, dashed=True)]
    for bar in bars:
        x, width = _x(bar["low"]) + 1, _x(bar["high"]) - _x(bar["low"]) - 2
        title = f"{100 * bar['right']:.1f} % of {bar['photos']} photos right, {100 * bar['confidence']:.1f} % sure on average"
        opacity = 0.35 + 0.65 * bar["photos"] / most
        parts.append(
            f'<rect x="{x:.1f}" y="{_y(bar["right"]):.1f}" width="{width:.1f}" height="{BOTTOM - _y(bar["right"]):.1f}" '
            f'fill="{color(0)}" opacity="{opacity:.2f}"><title>{title}</title></rect>'
            f'<circle cx="{_x(bar["confidence"]):.1f}" cy="{_y(bar["right"]):.1f}" r="3" fill="{INK}"/>'
            f'<text x="{x + width / 2:.1f}" y="{BOTTOM - 4}" text-anchor="middle" fill="{INK}" font-size="9">{bar["photos"]}</text>'
        )
    return _chart(parts, "how sure the answer is", "share that is right"), bars


def curves(rows: Sequence[Mapping[str, Any]]) -> Markup:
    """Return how top-1 on the validation photos went, from the rows of ``metrics.jsonl``; nothing of fewer than two.

    Args:
        rows: Rows of the log; only the kind ``val`` counts.
    """
    found = [row for row in rows if row.get("kind") == "val"]
    if len(found) < 2:
        return Markup("")
    names = [
        name
        for name in dict.fromkeys(key for row in found for key in row)
        if name.startswith("top1_") and name.removeprefix("top1_") not in ("scale_1+2", "mean")
    ]
    values = [float(row[name]) for row in found for name in names if name in row]
    low, high = max(0.0, min(values) - 0.02), min(1.0, max(values) + 0.02)
    parts = [_frame(low, high, _step(high - low), along=f"1 to {len(found)}")]
    for number, name in enumerate(names):
        tint = INK if name == "top1_fused" else color(number)
        points = [
            (i / (len(found) - 1), (float(row[name]) - low) / (high - low))
            for i, row in enumerate(found)
            if name in row
        ]
        parts.append(_line(points, tint))
        words = name.removeprefix("top1_").replace("_", " ")
        parts.append(
            f'<text x="{LEFT + 76 * (number % 4)}" y="{10 + 13 * (number // 4)}" fill="{tint}" font-size="11">'
            f"{escape(words)}</text>"
        )
    return _chart(parts, "validation, in the order of training", "top-1")


def _step(reach: float) -> float:
    return next(step for step in (0.01, 0.02, 0.05, 0.1, 0.2, 1.0) if reach / step <= 6)


def _x(share: float) -> float:
    return LEFT + (RIGHT - LEFT) * share


def _y(share: float) -> float:
    return BOTTOM - (BOTTOM - TOP) * share


def _frame(low: float, high: float, step: float, along: str | None = None) -> str:
    """Return the lines of the ordinate from low to high, and the ends of the abscissa: percents, or in words."""
    parts = []
    value = step * -(-low // step)
    while value <= high + 1e-9:
        height = _y((value - low) / (high - low))
        parts.append(
            f'<line x1="{LEFT}" x2="{RIGHT}" y1="{height:.1f}" y2="{height:.1f}" stroke="{LINE}"/>'
            f'<text x="{LEFT - 6}" y="{height + 4:.1f}" text-anchor="end" fill="{QUIET}" font-size="10">{100 * value:.0f} %</text>'
        )
        value += step
    ends = ("0 %", "100 %") if along is None else along.split(" to ")
    for place, word, anchor in ((LEFT, ends[0], "start"), (RIGHT, ends[1], "end")):
        parts.append(
            f'<text x="{place}" y="{BOTTOM + 14}" text-anchor="{anchor}" fill="{QUIET}" font-size="10">{word}</text>'
        )
    return "".join(parts)


def _line(points: Sequence[tuple[float, float]], tint: str, *, dashed: bool = False) -> str:
    drawn = " ".join(f"{_x(x):.1f},{_y(y):.1f}" for x, y in points)
    dash = ' stroke-dasharray="4 4"' if dashed else ""
    return f'<polyline points="{drawn}" fill="none" stroke="{tint}" stroke-width="1.8"{dash}/>'


def _chart(parts: Sequence[str], below: str, beside: str) -> Markup:
    words = (
        f'<text x="{(LEFT + RIGHT) // 2}" y="{BOTTOM + 32}" text-anchor="middle" fill="{INK}" font-size="12">{below}</text>'
        f'<text x="12" y="{(TOP + BOTTOM) // 2}" text-anchor="middle" fill="{INK}" font-size="12" '
        f'transform="rotate(-90 12 {(TOP + BOTTOM) // 2})">{beside}</text>'
    )
    return Markup(
        f'<svg viewBox="0 0 360 250" role="img" aria-label="{beside} by {below}">{"".join(parts)}{words}</svg>'
    )


def results_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return what was measured on validation photos, from the rows of ``metrics.jsonl``, as CSV: a row each time."""
    found = [row for row in rows if row.get("kind") == "val"]
    columns = list(dict.fromkeys(key for row in found for key in row if key != "kind"))
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, columns, restval="", extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(found)
    return file.getvalue()


def read_log(run: Path) -> list[dict[str, Any]]:
    """Return the rows of a run's ``metrics.jsonl`` that can be read; none where there is no such file."""
    try:
        lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return []
    rows = []
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def as_file(chart: str) -> str:
    """Return a chart as the content of an .svg file."""
    opened = '<svg xmlns="http://www.w3.org/2000/svg" font-family="sans-serif" width="720" height="500" '
    background = '<rect width="360" height="250" fill="white"/>'
    head, _, rest = chart.removeprefix("<svg ").partition(">")
    return f"{opened}{head}>{background}{rest}\n"


def together(counts: Sequence[Sequence[int]], num_classes: int) -> list[int]:
    """Return an order of the classes in which those stand together that are taken for one another.

    Average linkage of 1 / (1 + photos confused), leaves in the order that keeps neighbours closest.

    Args:
        counts: ``[label, answer, photos]``, from :func:`racnn.evaluation.metrics.confusion`.
        num_classes: C.
    """
    if num_classes < 3:
        return list(range(num_classes))
    from scipy.cluster.hierarchy import leaves_list, linkage
    from scipy.spatial.distance import squareform

    alike = torch.zeros(num_classes, num_classes, dtype=torch.float64)
    for label, answer, number in counts:
        if label != answer:
            alike[label, answer] += number
            alike[answer, label] += number
    distance = 1.0 / (1.0 + alike)
    distance.fill_diagonal_(0.0)
    tree = linkage(
        squareform(distance.numpy(), checks=False), method="average", optimal_ordering=num_classes <= 500
    )
    return [int(leaf) for leaf in leaves_list(tree)]
