"""Draw the curves of docs/experiments.md from the numbers beside it, as SVG.

    python tools/plots.py docs/experiments

``*.slopes.txt`` is what tools/slopes.py prints. ``*.rows.csv`` and ``*.finals.csv`` are what tools/study.py writes: the first
is drawn by variant, for its finest scale, the second with every scale. Each gives a picture of the same name. Needs matplotlib (requirements-dev.txt).
"""

from __future__ import annotations

import csv
import io
import re
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Annotated, Any

import typer

from racnn.cli import run_with_messages
from racnn.errors import DataError
from racnn.written import write_bytes

COLORS = {"tx": "#2563eb", "ty": "#d97706", "tl": "#db2777"}


def main(folder: Annotated[Path, typer.Argument(help="Folder of the numbers, and of the pictures.")]) -> None:
    """Draw a picture for every file of numbers."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "racnn"  # the same numbers give the same file
    drawn = 0
    for pattern, draw in DRAWINGS.items():
        for path in sorted(folder.glob(pattern)):
            try:
                figure = draw(path)
            except (ValueError, LookupError, StopIteration) as error:
                raise DataError(
                    f"{path}: cannot be drawn, expected numbers as its tool writes them: {error!r}"
                ) from None
            picture = io.BytesIO()
            figure.savefig(picture, format="svg", bbox_inches="tight", metadata={"Date": None})
            target = path.with_suffix(".svg")
            if not target.is_file() or target.read_bytes() != picture.getvalue():
                write_bytes(target, picture.getvalue(), flag="FOLDER", ours=_is_drawn)
            print(target)
            drawn += 1
    if not drawn:
        raise DataError(f"{folder}: expected files of numbers, {', '.join(DRAWINGS)}, found none")


def _is_drawn(path: Path) -> bool:
    """Return whether a picture is one of this tool's, as a fresh checkout has them without a record."""
    return b"<dc:title>Matplotlib" in path.read_bytes()[:2000]


def draw_slopes(path: Path) -> Any:
    """Return a figure: how the slope at each step goes with the derivative, and with the largest step."""
    from matplotlib.figure import Figure

    rows: dict[str, list[list[float]]] = defaultdict(list)
    for line in path.read_text(encoding="utf-8").splitlines():
        words = line.replace("(", " ").replace(")", " ").split()
        if words and words[0] in COLORS and len(words) in (7, 8):  # older files do not count the photos
            # step, rms, with derivative, its rms, same, with largest
            rows[words[0]].append([float(word) for word in words[-6:]])
    if not rows:
        raise DataError(f"{path}: holds no row that tools/slopes.py prints")
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
    """Return a figure: for each variant top-1 and held-out log-probability of the study's finest scale, seeds as dots."""
    with path.open(newline="", encoding="utf-8") as file:
        columns = next(csv.reader(file))
    finest = max(int(match[1]) for name in columns if (match := re.fullmatch(r"top1_scale_(\d+)", name)))
    return _dots(path, [f"scale_{finest}"])


def draw_finals(path: Path) -> Any:
    """Return a figure: the same of every scale and the fused answer, for a study of few variants."""
    return _dots(path, ["scale_1", "scale_2", "scale_3", "fused"])


def _dots(path: Path, answers: list[str]) -> Any:
    from matplotlib.figure import Figure

    with path.open(newline="", encoding="utf-8") as file:
        found = list(csv.DictReader(file))
    places = sorted({(row.get("split", ""), row["variant"]): None for row in found}, key=lambda key: key[0])
    several = len({split for split, _ in places}) > 1
    lines: dict[str, list[dict[str, str]]] = {}  # the seeds' rows of each line of dots
    for split, name in places:
        for answer in answers:
            own = [row for row in found if (row.get("split", ""), row["variant"]) == (split, name)]
            if rows := [row for row in own if row.get(f"top1_{answer}")]:
                title = name if len(answers) == 1 else f"{name}: {answer}"
                lines[f"{split}, {title}" if several else title] = [
                    {"top1": row[f"top1_{answer}"], "log_prob": row[f"log_prob_{answer}"]} for row in rows
                ]
    figure = Figure(figsize=(8, 0.6 + 0.35 * len(lines)))
    axes = figure.subplots(1, 2, sharey=True)
    which = f" of {answers[0]}" if len(answers) == 1 else ""
    for axis, column, factor, title in (
        (axes[0], "top1", 100.0, f"top-1{which}, %"),
        (axes[1], "log_prob", 1.0, f"mean log-probability{which}"),
    ):
        for place, rows in enumerate(lines.values()):
            values = [factor * float(row[column]) for row in rows]
            axis.plot(values, [place] * len(values), "o", color="#2563eb", alpha=0.6)
            axis.plot(statistics.mean(values), place, "|", color="black", markersize=14)
        axis.set(title=title, yticks=range(len(lines)), yticklabels=list(lines))
        axis.grid(axis="x", linewidth=0.3)
    axes[0].invert_yaxis()
    return figure


DRAWINGS = {"*.slopes.txt": draw_slopes, "*.rows.csv": draw_rows, "*.finals.csv": draw_finals}


if __name__ == "__main__":
    run_with_messages(lambda: typer.run(main))
