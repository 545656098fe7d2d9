"""A chart of what answers cost and how often they are right, as SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, LEFT, RIGHT, TOP, BOTTOM = 720, 60, 680, 40, 340  # of the picture, and of the frame in it; pixels
IN_A_ROW = 3  # of the legend
MOST_TICKS = 9


@dataclass(frozen=True)
class Dot:
    """A way to answer.

    Attributes:
        cost: Multiplications a photo.
        share: Share of the photos that are answered right.
        interval: Its 95 % interval.
        label: Written above.
        title: Shown where the pointer rests.
        color: One that SVG knows.
        joined: Whether it is joined with the others of its colour.
    """

    cost: float
    share: float
    interval: tuple[float, float]
    label: str
    title: str
    color: str
    joined: bool = False


def cost_chart(dots: Sequence[Dot], *, legend: Mapping[str, str], caption: str) -> str:
    """Return costs, on a logarithmic scale, and shares as an SVG; dots of one cost stand side by side.

    Args:
        dots: At least one.
        legend: Colours by what they mean.
        caption: Below the chart.
    """
    costs = [math.log2(max(dot.cost, 1.0)) for dot in dots]
    ends = [100 * end for dot in dots for end in dot.interval]
    first, last = min(costs) - 0.3, max(costs) + 0.3
    bottom, top = max(0, math.floor(min(ends))), min(100, math.ceil(max(ends)))
    bottom, top = (bottom, top) if bottom < top else (max(0, bottom - 1), min(100, top + 1))

    def x(dot: Dot) -> float:
        alike = [other for other in dots if other.cost == dot.cost and not other.joined]
        aside = 0.0 if dot.joined else 16 * (alike.index(dot) - (len(alike) - 1) / 2)
        return LEFT + (RIGHT - LEFT) * (math.log2(max(dot.cost, 1.0)) - first) / (last - first) + aside

    def y(share: float) -> float:
        return BOTTOM - (BOTTOM - TOP) * (100 * share - bottom) / (top - bottom)

    height_all = 395 + 20 * math.ceil(len(legend) / IN_A_ROW)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height_all}" viewBox="0 0 {WIDTH} {height_all}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{height_all}" fill="white"/>',
    ]
    step = next(step for step in (1, 2, 5, 10, 20) if top - bottom <= 6 * step)
    for percent in range(step * math.ceil(bottom / step), top + 1, step):
        height = f"{y(percent / 100):.1f}"
        parts.append(f'<line x1="{LEFT}" x2="{RIGHT}" y1="{height}" y2="{height}" stroke="#ddd"/>')
        parts.append(
            f'<text x="{LEFT - 8}" y="{y(percent / 100) + 4:.1f}" text-anchor="end">{percent} %</text>'
        )
    for cost, name in _round_costs(2**first, 2**last):
        across = LEFT + (RIGHT - LEFT) * (math.log2(cost) - first) / (last - first)
        parts.append(
            f'<line x1="{across:.1f}" x2="{across:.1f}" y1="{BOTTOM}" y2="{BOTTOM + 4}" stroke="#999"/>'
            f'<text x="{across:.1f}" y="{BOTTOM + 16}" text-anchor="middle" fill="#666">{name}</text>'
        )
    for color in dict.fromkeys(dot.color for dot in dots):
        joined = sorted((dot for dot in dots if dot.joined and dot.color == color), key=lambda dot: dot.cost)
        if joined:
            points = " ".join(f"{x(dot):.1f},{y(dot.share):.1f}" for dot in joined)
            parts.append(f'<polyline points="{points}" fill="none" stroke="{color}"/>')
    for dot in dots:
        place, (low, high) = f"{x(dot):.1f}", (f"{y(end):.1f}" for end in dot.interval)
        parts += [
            f'<line x1="{place}" x2="{place}" y1="{low}" y2="{high}" stroke="{dot.color}" opacity="0.3"/>',
            f'<circle cx="{place}" cy="{y(dot.share):.1f}" r="5" fill="{dot.color}"><title>{escape(dot.title)}</title></circle>',
            f'<text x="{place}" y="{y(dot.share) - 9:.1f}" text-anchor="middle">{escape(dot.label)}</text>',
        ]
    for number, (name, color) in enumerate(legend.items()):
        row, column = divmod(number, IN_A_ROW)
        across, down = LEFT + 10 + 205 * column, 395 + 20 * row
        parts.append(
            f'<circle cx="{across}" cy="{down}" r="5" fill="{color}"/><text x="{across + 10}" y="{down + 4}">{escape(name)}</text>'
        )
    middle = (LEFT + RIGHT) // 2
    parts.append(f'<text x="{middle}" y="372" text-anchor="middle">{escape(caption)}</text>')
    return "\n".join([*parts, "</svg>", ""])


def _round_costs(low: float, high: float) -> list[tuple[float, str]]:
    """Return round numbers between two, and how they are written, such as 2 G."""
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    digits: tuple[float, ...] = (1, 2, 5)
    found = [d * 10.0**e for e in exponents for d in digits if low <= d * 10.0**e <= high]
    if len(found) < 2:
        digits = tuple(each / 10 for each in range(10, 100))
        found = [d * 10.0**e for e in exponents for d in digits if low <= d * 10.0**e <= high]
    while len(found) > MOST_TICKS:
        found = found[::2]
    return [(cost, _written_out(cost)) for cost in found]


def _written_out(cost: float) -> str:
    """Return a number with two digits and a unit, such as 2.5 G."""
    thousands = min(max(math.floor(math.log10(cost) + 1e-9), 0) // 3, 4)
    return f"{float(f'{cost / 1000.0**thousands:.2g}'):g}{('', ' k', ' M', ' G', ' T')[thousands]}"
