"""Look over a data set: what is in it, and whether every photo can be read and holds its box."""

from __future__ import annotations

import math
import multiprocessing
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from racnn.data.image_io import photo_size, read_photo
from racnn.data.listing import describe_passed
from racnn.data.names import lookalike_warnings
from racnn.data.sources.catalog import MOST_NAMED, Box, Catalog, Record
from racnn.errors import DataError
from racnn.sections import DataConfig

if TYPE_CHECKING:
    from racnn.data.build import Data

QUANTILES = (0.0, 0.1, 0.5, 0.9, 1.0)
AT_ONCE = 16  # photos handed to a worker together
LEAST_BOX = 1.0  # pixels of a side; smaller boxes are given in another unit
SLACK = 1.0  # pixels by which a box may leave its photo, from rounding
LEAST_INSIDE = (
    0.5  # share of a box that its photo must hold: those of the official data sets reach over edges
)


def survey(catalog: Catalog) -> dict[str, Any]:
    """Count photos and classes, and measure the photos by their headers.

    Returns:
        ``splits`` photos of each; ``classes`` how many; ``largest`` and ``smallest`` class with (name, photos) over all
        splits, ``imbalance`` their ratio; ``boxes`` and ``parts`` how many photos have them; ``short_side`` and ``aspect``
        (width / height) at the quantiles 0, 0.1, 0.5, 0.9 and 1; ``unreadable`` photos by their headers; ``notes``, lines
        about class names that look alike and files that were passed over.
    """
    every = catalog.records()
    counts = np.bincount([record.label for record in every], minlength=len(catalog.class_names))
    few, many = int(counts.argmin()), int(counts.argmax())
    annotated = [catalog.annotate(record) for record in every if record.path is not None]
    found = [_size(record.path) for record in every if record.path is not None]
    sizes = [size for size in found if size is not None]
    report: dict[str, Any] = {
        "dataset": catalog.dataset,
        "splits": {split: len(records) for split, records in catalog.splits().items()},
        "classes": len(catalog.class_names),
        "largest": [catalog.class_names[many], int(counts[many])],
        "smallest": [catalog.class_names[few], int(counts[few])],
        "imbalance": float(counts[many] / counts[few]) if counts[few] else math.inf,
        "boxes": sum(box is not None for box, _ in annotated),
        "parts": sum(any(visible for _, _, visible in parts) for _, parts in annotated),
        "unreadable": len(found) - len(sizes),
        "notes": notes_on(catalog),
    }
    if sizes:
        height, width = np.array(sizes, dtype=np.float64).T
        report["short_side"] = np.quantile(np.minimum(height, width), QUANTILES).tolist()
        report["aspect"] = np.quantile(width / height, QUANTILES).tolist()
    return report


def format_survey(report: dict[str, Any]) -> str:
    """Return a survey as text for a terminal."""
    total = sum(report["splits"].values())
    shares = ", ".join(f"{count} {split}" for split, count in report["splits"].items())
    lines = [
        f"{report['dataset']}: {total} photos ({shares}), {report['classes']} classes",
        f"largest class   {report['largest'][0]} ({report['largest'][1]} photos)",
        f"smallest class  {report['smallest'][0]} ({report['smallest'][1]} photos), imbalance {report['imbalance']:.1f} to 1",
        f"annotated       {report['boxes']} with a box, {report['parts']} with parts",
    ]
    if "short_side" in report:
        sides = " / ".join(f"{value:.0f}" for value in report["short_side"])
        aspects = " / ".join(f"{value:.2f}" for value in report["aspect"])
        lines.append(f"short side      {sides} px (least / 10 % / median / 90 % / most)")
        lines.append(f"width / height  {aspects}")
    if report["unreadable"]:
        lines.append(f"unreadable      {report['unreadable']} photos; see: racnn data verify PHOTOS")
    lines += report["notes"]
    return "\n".join(lines)


def notes_on(catalog: Catalog) -> list[str]:
    """Return what a user should know of a data set before any photo is read, one line each."""
    passed = [describe_passed(catalog.passed_over)] if catalog.passed_over else []
    return [*lookalike_warnings(catalog.class_names), *passed]


def _size(path: Path) -> tuple[int, int] | None:
    """Return the height and width of the upright photo; None where its header cannot be read."""
    try:
        return photo_size(path)
    except DataError:
        return None


def box_problem(box: Box, path: Path) -> tuple[str, bool] | None:
    """Return why a box (xyxy) cannot be one in the pixels of its photo, and whether it is misplaced altogether.

    That is a box of less than a pixel, or mostly outside. None for a sound box, and where the photo's header cannot be
    read, which :func:`damaged` tells.
    """
    size = _size(path)
    if size is None:
        return None
    height, width = size
    x0, y0, x1, y1 = box
    shown = f"the box {[round(value, 2) for value in box]}"
    if min(x1 - x0, y1 - y0) < LEAST_BOX or max(x1, y1) <= 1.0 < max(size):
        expected = f"expected pixels of the upright photo, {width}x{height}"
        return f"{shown} is less than a pixel wide or high, or no larger than one; {expected}", True
    if min(x0, y0) < -SLACK or x1 > width + SLACK or y1 > height + SLACK:
        inside = max(0.0, min(x1, width) - max(x0, 0.0)) * max(0.0, min(y1, height) - max(y0, 0.0))
        misplaced = inside < LEAST_INSIDE * (x1 - x0) * (y1 - y0)
        return f"{shown} lies outside the upright photo, {width}x{height} pixels", misplaced
    return None


def box_problems(records: Iterable[Record]) -> list[tuple[Record, str, bool]]:
    """Return the photos whose boxes do not lie in them, and what :func:`box_problem` says of each."""
    return [
        (record, *problem)
        for record in records
        if record.path and record.box_xyxy and (problem := box_problem(record.box_xyxy, record.path))
    ]


def refuse_misplaced_boxes(data: Data) -> None:
    """Refuse a data set whose boxes are not those of its photos; a list of photos has checked its own.

    Raises:
        DataError: A box is less than a pixel or lies mostly outside its photo.
    """
    if data.dataset == "manifest":
        return
    records = (record for photos in data.splits.values() for record in photos.records)
    wrong = [(record, problem) for record, problem, misplaced in box_problems(records) if misplaced]
    if wrong:
        record, problem = wrong[0]
        raise DataError(
            f"{len(wrong)} boxes are not those of their photos, for example {record.path}: {problem}; racnn data verify PHOTOS lists all"
        )


def damaged(records: Sequence[Record], *, workers: int) -> Iterator[tuple[Record, str | None]]:
    """Read every photo; yield each record, which must have a path, with why it cannot be read, or None, in order.

    With ``workers`` so many processes do it, with 0 this one.

    Raises:
        DataError: A process was killed.
    """
    paths = [record.path for record in records if record.path is not None]
    assert len(paths) == len(records), "drawn photos need no check"
    if workers == 0:
        yield from zip(records, map(_reason, paths), strict=True)
        return
    context = multiprocessing.get_context("spawn")  # threads of torch and OpenCV do not survive a fork
    try:
        with ProcessPoolExecutor(workers, mp_context=context) as pool:
            yield from zip(records, pool.map(_reason, paths, chunksize=AT_ONCE), strict=True)
    except BrokenProcessPool:
        raise DataError(
            "a process that reads photos was killed, perhaps for want of memory; read them in this one "
            "(--workers 0, or data.num_workers=0) to see which photo it was"
        ) from None


def find_damaged(catalog: Catalog, config: DataConfig) -> dict[str, str]:
    """Read every photo of a data set and return the names of the damaged ones with the reason.

    Raises:
        DataError: They are a larger share than ``config.most_skipped``; a single one is not, unless that is 0.
    """
    records = [record for record in catalog.records() if record.path is not None]
    workers = min(config.num_workers, len(records) // AT_ONCE)
    found = {record.name: why for record, why in damaged(records, workers=workers) if why is not None}
    if len(found) > config.most_skipped * len(records) and (len(found) > 1 or not config.most_skipped):
        first = "; ".join(f"{name}: {why}" for name, why in list(found.items())[:MOST_NAMED])
        raise DataError(
            f"data.on_error: {len(found)} of {len(records)} photos are damaged, more than data.most_skipped "
            f"({config.most_skipped:g}) of them: {first}"
        )
    return found


def _reason(path: Path) -> str | None:
    try:
        read_photo(path)
    except DataError as error:
        return str(error).removeprefix(f"{path}: ")
    return None
