"""Draw the curves of docs/experiments.md from the numbers beside it, as SVG.

    python tools/plots.py docs/experiments

``*.slopes.txt`` is what tools/slopes.py prints, ``*.rows.csv`` is what tools/study.py writes. Each gives a picture of the
same name. Needs matplotlib (requirements-dev.txt).
"""

from __future__ import annotations

import csv
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Annotated, Any

import typer

from racnn.cli import run_with_messages
from racnn.errors import DataError

COLORS = {"tx": "#2563eb", "ty": "#d97706", "tl": "#db2777"}


def main(folder: Annotated[Path, typer.Argument(help="Folder of the numbers, and of the pictures.")]) -> None:
    """Draw a picture for every file of numbers."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "racnn"  # the same numbers give the same file
    drawn = 0
    for pattern, draw in (("*.slopes.txt", draw_slopes), ("*.rows.csv", draw_rows)):
        for path in sorted(folder.glob(pattern)):
            figure = draw(path)
            figure.savefig(path.with_suffix(".svg"), bbox_inches="tight", metadata={"Date": None})
            print(path.with_suffix(".svg"))
            drawn += 1
    if not drawn:
        raise DataError(f"{folder}: expected files of numbers, *.slopes.txt or *.rows.csv, found none")


def draw_slopes(path: Path) -> Any:
    """Return a figure: how the slope at each step goes with the derivative, and with the largest step."""
    from matplotlib.figure import Figure

    rows: dict[str, list[list[float]]] = defaultdict(list)
    for line in path.read_text(encoding="utf-8").splitlines():
        words = line.replace("(", " ").replace(")", " ").split()
        if words and words[0] in COLORS and len(words) == 7:
            rows[words[0]].append(
                [float(word) for word in words[1:]]
            )  # step, rms, with derivative, its rms, same, with largest
    figure = Figure(figsize=(8, 3))
    axes = figure.subplots(1, 2, sharey=True)
    for name, values in rows.items():
        steps = [row[0] for row in values]
        axes[0].plot(steps, [row[2] for row in values], "o-", color=COLORS[name], label=name)
        axes[1].plot(steps, [row[5] for row in values], "o-", color=COLORS[name], label=name)
    for axis, title in zip(
        axes, ("with the exact derivative", "with the slope at the largest step"), strict=True
    ):
        axis.set(title=title, xscale="log", xlabel="step, share of the region's side", ylim=(-0.6, 1.05))
        axis.axhline(0, color="grey", linewidth=0.5)
    axes[0].set_ylabel("correlation over photos")
    axes[0].legend(frameon=False)
    return figure


def draw_rows(path: Path) -> Any:
    """Return a figure: for each variant of a study top-1 and held-out log-probability of scale 2, seeds as dots."""
    from matplotlib.figure import Figure

    with path.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row.get("top1_scale_2")]
    names = list(dict.fromkeys(row["variant"] for row in rows))
    figure = Figure(figsize=(8, 0.6 + 0.35 * len(names)))
    axes = figure.subplots(1, 2, sharey=True)
    for axis, column, factor, title in (
        (axes[0], "top1_scale_2", 100.0, "top-1 of scale 2, %"),
        (axes[1], "log_prob_scale_2", 1.0, "mean log-probability, scale 2"),
    ):
        for place, name in enumerate(names):
            values = [factor * float(row[column]) for row in rows if row["variant"] == name]
            axis.plot(values, [place] * len(values), "o", color="#2563eb", alpha=0.6)
            axis.plot(statistics.mean(values), place, "|", color="black", markersize=14)
        axis.set(title=title, yticks=range(len(names)), yticklabels=names)
        axis.grid(axis="x", linewidth=0.3)
    axes[0].invert_yaxis()
    return figure


if __name__ == "__main__":
    run_with_messages(lambda: typer.run(main))
