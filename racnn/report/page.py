"""The page: what a network is right and wrong about, where it looked, and what all of it rests on."""

from __future__ import annotations

import json
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jinja2
import torch
import yaml

from racnn import __version__
from racnn.config import dump_config
from racnn.data.marks import NONE_TELLS, Marks, in_words
from racnn.engine.evaluator import Measured
from racnn.engine.photo_rows import photo_rows
from racnn.engine.predictor import Predictor
from racnn.evaluation import draw
from racnn.evaluation.charts import color, curves, reliability, together
from racnn.evaluation.photo_rows import PhotoRow
from racnn.evaluation.report import answer_in_words
from racnn.models.racnn.model import RACNN
from racnn.portable.answers import Prediction
from racnn.report.pictures import PHOTO, THUMB, VIEW, embedded, small_photo, with_boxes

MOST_BYTES = 4_700_000  # of the page; as many small photos as fit below it
MOST_MISTAKES, MOST_PAIRS, MOST_WORST = 50, 8, 15
FEW = 8  # photos looked at together
MEAN = " (mean of their probabilities)"


def report_page(
    trained: Predictor,
    measured: Measured,
    *,
    title: str,
    log: Sequence[Mapping[str, Any]] = (),
    advice: Mapping[str, Any] | None = None,
    remarks: Sequence[str] = (),
    marks: Marks | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> str:
    """Return a report as one HTML file that asks nothing of any network.

    Args:
        trained: The network.
        measured: What it made of photos with labels.
        title: Title of the page.
        log: Rows of ``metrics.jsonl`` of its run.
        advice: What ``racnn advise`` wrote: what costs as much, on the same kind of photos.
        remarks: What must be known of the photos, from :func:`racnn.evaluation.report.notes`.
        marks: Marks of the classes, which tell those apart that are confused.
        progress: Told how many of the pictures are drawn.
    """
    rows = list(photo_rows(trained, measured, every=False))
    report, by = measured.report, rows[0].by
    mistakes = sorted(
        (i for i, row in enumerate(rows) if not row.right), key=lambda i: -rows[i].answer.probability
    )
    pairs = _pairs(report, rows, marks)
    wanted = list(dict.fromkeys([*mistakes[:MOST_MISTAKES], *(i for pair in pairs for i in pair["photos"])]))
    cards = _cards(trained, measured, rows, wanted, progress)
    confidence = torch.tensor([row.answer.probability for row in rows])
    diagram, bars = reliability(confidence, torch.tensor([row.right for row in rows]))
    names = [row["name"] for row in report["per_class"]]
    counts = report["confusion"]["counts"]
    content: dict[str, Any] = {
        "title": title,
        "report": report,
        "by": by,
        "split": {
            "val": "validation photos",
            "test": "test photos",
            "train": "photos that it was trained on",
        }.get(report["split"], f"photos of '{report['split']}'"),
        "answers": [
            (key, answer_in_words(key, trained.config.model) + MEAN * (key == "mean"))
            for key in report["top1"]
            if key != "scale_1+2"
        ],
        "first": answer_in_words("scale_1", trained.config.model),
        "advises": isinstance(trained.model, RACNN),
        "advice": advice,
        "remarks": remarks,
        "curves": curves(log),
        "reliability": diagram,
        "sure": float(confidence.mean()),
        "verdict": _verdict(float(confidence.mean()), report["top1_interval"][by]),
        "bars": bars,
        "worst": _worst(report),
        "pairs": [pair | {"cards": [cards[i] for i in pair["photos"]]} for pair in pairs],
        "num_mistakes": len(mistakes),
        "mistakes": [cards[i] for i in mistakes[:MOST_MISTAKES]],
        "matrix": _matrix(report),
        "data": _data(trained, measured),
        "config": yaml.safe_dump(dump_config(trained.config), sort_keys=False, allow_unicode=True),
        "network": rows[0].network,
        "billions": rows[0].multiplications / 1e9,
        "version": __version__,
        "color": color,
        "none_tells": NONE_TELLS,
    }
    orders = {
        "alike together": together(counts, len(names)),
        "as listed": list(range(len(names))),
        "by name": sorted(range(len(names)), key=lambda i: names[i].casefold()),
        "most mistakes first": _by_mistakes(report),
    }
    content["photos"] = {"names": [], "orders": orders, "rows": []}
    thumbs: dict[int, str] = {}
    page = _template().render(content)
    room = MOST_BYTES - len(page.encode("utf-8", "replace"))
    listed, for_names = list[int](), room / 2  # the rest is for pictures
    for i in [*mistakes, *(i for i in range(len(rows)) if rows[i].right)]:
        taken = 40 + len(json.dumps(_readable(rows[i].photo)))
        if taken > for_names:
            break
        for_names -= taken
        room -= taken
        listed.append(i)
    for i in listed:
        record = measured.photos.records[i]
        thumb = embedded(small_photo(measured.photos, record, THUMB), THUMB)
        room -= len(thumb)
        if room < 0:
            break
        thumbs[i] = thumb
        progress(len(wanted) + len(thumbs), len(wanted) + len(listed))
    index = {name: number for number, name in enumerate(names)}
    content["photos"] = {
        "names": [_readable(name) for name in names],
        "orders": orders,
        "rows": [
            [
                index[rows[i].label],
                index[rows[i].answer.name],
                round(rows[i].answer.probability, 4),
                _readable(rows[i].photo),
                thumbs.get(i),
            ]
            for i in listed
        ],
    }
    return _readable(_template().render(content))


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("racnn.report", ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": lambda share: f"{100 * share:.1f}", "text": _readable}
    return environment.get_template("page.html")


def _readable(text: str) -> str:
    """Return a text without the surrogates that stand for bytes of names that are no UTF-8."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _cards(
    trained: Predictor,
    measured: Measured,
    rows: Sequence[PhotoRow],
    wanted: Sequence[int],
    progress: Callable[[int, int], None],
) -> dict[int, dict[str, Any]]:
    """Return what is shown of some photos, looked at once more, with why where the network can be asked."""
    photos = measured.photos
    why = isinstance(trained.model, RACNN) and len(trained.class_names) > 1
    found: dict[int, dict[str, Any]] = {}
    for start in range(0, len(wanted), FEW):
        some = wanted[start : start + FEW]
        loaded = [photos.catalog.load(photos.records[i]) for i in some]
        for i, seen in zip(some, trained.predict(loaded, why=why), strict=True):
            found[i] = _card(rows[i], seen)  # large photos are not kept
        progress(len(found), 0)
    return found


def _card(row: PhotoRow, seen: Prediction) -> dict[str, Any]:
    """Return what is shown of a photo: words, the photo with its boxes, its views, and what speaks for the answer."""
    heats = seen.why or []
    return {
        "name": _readable(row.photo),
        "label": row.label,
        "answer": row.answer.name,
        "right": row.right,
        "probability": row.answer.probability,
        "of_label": row.answer.of_label,
        "sure": seen.sure,
        "against": seen.top[1][0] if len(seen.top) > 1 else None,
        "photo": embedded(with_boxes(seen.photo, seen.boxes_xyxy, PHOTO), PHOTO),
        "views": [embedded(view, VIEW) for view in seen.views],
        "why": [
            embedded(draw.heat(view, cells), VIEW) for view, cells in zip(seen.views, heats, strict=False)
        ],
        "attention": [embedded(view, VIEW) for view in seen.attention_views()] if seen.weighs_cells else [],
    }


def _pairs(report: Mapping[str, Any], rows: Sequence[PhotoRow], marks: Marks | None) -> list[dict[str, Any]]:
    """Return the pairs of classes that are confused most, each with a photo of either that is answered rightly, the surest,
    and one of either that is taken for the other, and with what tells either from the other."""
    kinds: dict[tuple[str, str], list[int]] = defaultdict(list)
    for i, row in enumerate(rows):
        kinds[row.label, row.answer.name].append(i)
    found = []
    for pair in report["most_confused"][:MOST_PAIRS]:
        first, second = pair["classes"]
        cells = [(first, first), (first, second), (second, first), (second, second)]
        photos = [max(kinds[cell], key=lambda i: rows[i].answer.probability) for cell in cells if kinds[cell]]
        told = []
        if marks is not None:
            told = [
                (one, in_words(marks.telling(one, other)))
                for one, other in ((first, second), (second, first))
            ]
        found.append({**pair, "counts": pair["photos"], "photos": photos, "marks": told})
    return found


def _worst(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the classes that are answered rightly least often, with what they are taken for."""
    names = [row["name"] for row in report["per_class"]]
    taken: dict[int, Counter[str]] = defaultdict(Counter)
    for label, answer, number in report["confusion"]["counts"]:
        if label != answer:
            taken[label][names[answer]] += number
    key = report["confusion"]["answer"]
    rows = [
        {
            "name": row["name"],
            "n": row["n"],
            "right": row["correct"][key],
            "taken": taken[label].most_common(3),
        }
        for label, row in enumerate(report["per_class"])
        if row["n"] and row["correct"][key] < row["n"]
    ]
    return sorted(rows, key=lambda row: (row["right"] / row["n"], -row["n"]))[:MOST_WORST]


def _by_mistakes(report: Mapping[str, Any]) -> list[int]:
    key, rows = report["confusion"]["answer"], report["per_class"]
    return sorted(range(len(rows)), key=lambda i: rows[i]["correct"][key] - rows[i]["n"])


def _matrix(report: Mapping[str, Any]) -> dict[str, Any]:
    """Return the cells of the confusion matrix: the share of its class's photos decides how dark one is."""
    rows = report["per_class"]
    cell = max(6, min(30, 900 // len(rows)))
    cells = [
        {"label": label, "answer": answer, "photos": number, "share": number / rows[label]["n"]}
        for label, answer, number in report["confusion"]["counts"]
    ]
    return {"cells": cells, "side": cell, "named": cell >= 9, "margin": 150 if cell >= 9 else 12}


def _data(trained: Predictor, measured: Measured) -> dict[str, Any]:
    splits = measured.data.splits
    counts = [
        {
            "split": split,
            "photos": len(photos),
            "each": _spread(Counter(record.label for record in photos.records)),
        }
        for split, photos in splits.items()
    ]
    return {
        "dataset": measured.report["dataset"],
        "classes": len(trained.class_names),
        "counts": counts,
        "trained_on": len(trained.train_names),
        "skipped": measured.report["num_skipped"],
    }


def _verdict(sure: float, right: Sequence[float]) -> str:
    """Return in words whether answers are as sure as they are right, as far as so many photos can tell."""
    low, high = right
    if low <= sure <= high:
        return "as sure as it should be, as far as so many photos can tell"
    return "surer than it should be" if sure > high else "less sure than it could be"


def _spread(counts: Mapping[int, int]) -> str:
    """Return how many photos classes have, in words."""
    numbers = sorted(counts.values())
    if not numbers:
        return "none"
    low, high = numbers[0], numbers[-1]
    return (
        str(low) if low == high else f"{low} to {high}, half of them at most {statistics.median_low(numbers)}"
    )
