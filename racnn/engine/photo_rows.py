"""Make the rows of ``predictions.jsonl`` from what was measured, see :mod:`racnn.evaluation.photo_rows`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from racnn.data.image_io import photo_size
from racnn.data.sources.catalog import read_record
from racnn.engine.predictor import network_digest
from racnn.evaluation.photo_rows import LEAST, EarlyAnswer, LookAnswer, PhotoRow
from racnn.models.cost import multiplications
from racnn.models.early_exit import EarlyExit, answers_by_depth, stops
from racnn.models.family import combined_log_probs
from racnn.ops.regions import to_boxes_xyxy

if TYPE_CHECKING:
    from racnn.data import PhotoDataset
    from racnn.engine.evaluator import Measured
    from racnn.engine.predictor import Predictor


def photo_rows(trained: Predictor, measured: Measured, *, every: bool = True) -> Iterator[PhotoRow]:
    """Yield the rows of the photos that were measured, in their order.

    Args:
        trained: The network.
        measured: What it made of the photos.
        every: Name the probabilities of all classes, not only of the most probable and the true one.
    """
    predictions, photos, names = measured.predictions, measured.photos, trained.class_names
    side = trained.config.data.source_size
    regions = [to_boxes_xyxy(region, (side, side)) for region in predictions.regions[1:]]
    probs = {f"scale_{number}": x.softmax(dim=1) for number, x in enumerate(predictions.logits, start=1)}
    probs["mean"] = combined_log_probs(predictions.logits, None).exp()
    if predictions.fused is not None:
        probs["fused"] = predictions.fused.softmax(dim=1)
    image = torch.zeros(1, 3, side, side, device=next(trained.model.parameters()).device)
    with torch.no_grad():
        cost = multiplications(lambda: trained.model(image, num_scales=trained.scales))
    early = _early_answers(measured, names, cost)
    network = network_digest(trained)[:12]
    for index, record in enumerate(photos.records):
        size = _size(photos, index)
        object_xyxy, _ = photos.catalog.annotate(record)
        yield PhotoRow(
            photo=record.name,
            path=None if record.path is None else str(record.path),
            split=measured.report["split"],
            label=names[record.label],
            by="mean" if predictions.fused is None else "fused",
            answers={
                key: _answer(each[index], record.label, names, every=every) for key, each in probs.items()
            },
            boxes_xyxy=[
                _rounded(photos.plain_transform.to_photo(region[index].tolist(), size)) for region in regions
            ],
            object_xyxy=None if object_xyxy is None else _rounded(object_xyxy),
            multiplications=cost,
            early_exit=early[index] if early else None,
            network=network,
        )


def _early_answers(measured: Measured, names: list[str], cost: float) -> list[EarlyAnswer]:
    early: EarlyExit | None = measured.early_exit
    if early is None:
        return []
    predictions = measured.predictions
    answers = answers_by_depth(predictions.logits, predictions.fused, early.pools)
    found = []
    for index, depth in enumerate(stops(answers, early).tolist()):
        probability, label = answers[depth - 1][index].exp().max(dim=0)
        share = sum(early.costs[:depth])
        found.append(
            EarlyAnswer(
                looks=depth,
                name=names[int(label)],
                probability=float(probability.clamp(max=1.0)),
                multiplications=share * cost,
            )
        )
    return found


def _answer(probs: Tensor, label: int, names: list[str], *, every: bool) -> LookAnswer:
    values, order = probs.double().clamp(0.0, 1.0).sort(descending=True, stable=True)
    pairs = list(zip(order.tolist(), values.tolist(), strict=True))
    best, probability = pairs[0]
    of_label = next(value for number, value in pairs if number == label)
    kept = [pair for pair in pairs if pair[1] >= LEAST or pair[0] == label] if every else pairs[:1]
    return LookAnswer(
        name=names[best],
        probability=probability,
        of_label=of_label,
        probabilities={names[number]: float(f"{value:.6g}") for number, value in kept},
    )


def _size(photos: PhotoDataset, index: int) -> tuple[int, int]:
    """Return (height, width) of a photo."""
    record = photos.records[index]
    if record.path is not None and photos.catalog.load is read_record:
        return photo_size(record.path)
    height, width, _ = photos.catalog.load(record).shape
    return height, width


def _rounded(box: Sequence[float]) -> tuple[float, float, float, float]:
    x0, y0, x1, y1 = (round(float(value), 2) for value in box)
    return x0, y0, x1, y1
