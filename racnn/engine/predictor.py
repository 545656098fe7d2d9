"""Use a trained network: take it from a checkpoint, measure it on a split, look at one photo."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor

from racnn.config import Config
from racnn.data import Data, PhotoDataset, build_data, eval_loader
from racnn.data.build import build_to_measure
from racnn.data.contents import describe_copies, find_copies, read_contents
from racnn.data.folder_stream import photo_batches
from racnn.data.sources.catalog import Record
from racnn.data.sources.manifest import list_names
from racnn.data.statistics import refuse_misplaced_boxes
from racnn.data.transforms import SourceTransform
from racnn.engine.device import prepare
from racnn.engine.digest import digest
from racnn.engine.early_exit import (
    EarlyExit,
    Outcome,
    answers_by_depth,
    calibrate,
    look_until_sure,
    outcome,
    scale_costs,
)
from racnn.engine.loop import Predictions, predict, report
from racnn.engine.parts import Parts
from racnn.engine.provenance import DIGEST_LENGTH
from racnn.engine.published import is_published, write_published
from racnn.engine.stored import open_checkpoint
from racnn.errors import ConfigError, DataError
from racnn.evaluation import draw as viz
from racnn.models import RACNN, build_model
from racnn.ops.regions import to_boxes_xyxy
from racnn.written import refuse_foreign


@dataclass
class Trained:
    """A network from a checkpoint and what is needed to use it.

    Attributes:
        model: On its device, in evaluation mode.
        config: Of the run.
        class_names: In the order of the logits.
        train_names: The photos it was trained on.
        val_names: The photos that were held out for validation.
        train_digests: What the training photos hold, in the order of their names; empty where that is not known.
        val_digests: The same of the validation photos.
        scales: How many scales were trained when the checkpoint was written.
        fused: Whether the fusion layer was.
    """

    model: RACNN
    config: Config
    class_names: list[str]
    train_names: list[str]
    val_names: list[str]
    train_digests: list[str]
    val_digests: list[str]
    scales: int
    fused: bool


def load_trained(path: Path | str, device: torch.device | str = "cpu") -> Trained:
    """Build the network that a checkpoint describes and fill it.

    Args:
        path: Of ``best.pt`` or ``last.pt``, or of a .safetensors file that was exported from one.
        device: Where to put the network.

    Raises:
        CheckpointError: The file is missing or damaged, or its parts do not fit each other.
    """
    device = torch.device(device)
    stored = open_checkpoint(Path(path))
    content, config = stored.content, stored.config
    model = build_model(config.model, num_classes=len(content.class_names), weights=False)
    model.load_state_dict(content.model)
    prepare(model, config, device, training=False)
    return Trained(
        model=model.eval(),
        config=config,
        class_names=content.class_names,
        train_names=content.train_names,
        val_names=content.val_names,
        train_digests=content.train_digests,
        val_digests=content.val_digests,
        scales=max(1, content.trained_scales),
        fused=content.fusion_trained,
    )


def export_trained(path: Path, out: Path) -> None:
    """Write the network of a checkpoint as .safetensors, with what is needed to use it; what a run needs is left out.

    Args:
        path: The checkpoint.
        out: Where to; an earlier export there is replaced.

    Raises:
        CheckpointError: As :func:`load_trained` does.
        ConfigError: Something stands at ``out`` that is no export.
    """
    refuse_foreign([out], flag="--out", ours=is_published)
    content = open_checkpoint(path).content
    kept = content.model_fields_set - {"progress", "optimizer"}
    write_published(out, {name: getattr(content, name) for name in kept})
    open_checkpoint(out)  # what is handed on can be read


def data_of(trained: Trained, *, root: Path | None = None, skip_damaged: bool = False) -> Data:
    """Return the dataset that a network was trained on, split as its run had it.

    Args:
        trained: From :func:`load_trained`.
        root: The dataset's folder, where it is no longer the one of the run.
        skip_damaged: Read every photo beforehand and leave out the damaged ones, however many.

    Raises:
        DataError: The dataset is missing, or has other classes than the network.
    """
    config = trained.config
    changes: dict[str, Any] = {} if root is None else {"root": root}
    if skip_damaged:
        changes |= {"on_error": "skip", "most_skipped": 1.0}
    data_config = config.data.model_copy(update=changes)
    return build_data(
        data_config, seed=config.run.seed, val_names=trained.val_names, class_names=trained.class_names
    )


def evaluate_trained(
    trained: Trained,
    *,
    split: str | None = None,
    root: Path | None = None,
    skip_damaged: bool = False,
    early_exit: bool = False,
) -> dict[str, Any]:
    """Return the report on photos with labels: a split of what the network was trained on, or others.

    Args:
        trained: From :func:`load_trained`.
        split: 'test', 'val', 'train' or 'all'; of the run's own photos 'val' is exactly what the run held out. None is the test
            photos of the run, and all of other photos.
        root: The run's dataset where it is no longer where it was, or other photos: a list or folder that
            :func:`racnn.data.build.build_to_measure` reads, with some of the network's classes.
        skip_damaged: Leave out photos that cannot be read; their number is ``num_skipped`` of the report.
        early_exit: Also choose on the validation photos when a photo needs no further look, and report as
            ``early_exit`` the choice, its curve on the validation photos, and what it makes of the split.

    Returns:
        The report of :func:`racnn.evaluation.report.evaluation_report`. Of files that can be compared ``num_trained_on`` says how many
        of the photos were trained on, by their contents; of other photos ``passed_over`` counts the files beside them that
        are none, by kind, and ``warnings`` are lines about copies among them.

    Raises:
        ConfigError: ``early_exit`` with one trained scale, or on other photos; a split that other photos do not bring.
        DataError: The photos are missing, one is damaged or of a class that the network does not know, or the run's test
            photos were trained on.
    """
    own = root is None or is_data_of_run(trained, root)
    if own:
        data = data_of(trained, root=root, skip_damaged=skip_damaged)
        split = split or "test"
        _refuse_leaked(trained, data, split)
    else:
        if early_exit:
            raise ConfigError(
                f"--early-exit: chooses on the run's validation photos, which are not in {root}"
            )
        assert root is not None
        changes = {"on_error": "skip", "most_skipped": 1.0} if skip_damaged else {}
        config = trained.config.data.model_copy(update=changes)
        data = build_to_measure(config, root, class_names=trained.class_names)
        split = split or "all"
        if split not in data.splits:
            raise ConfigError(f"--split {split}: {root} brings no such photos, only {', '.join(data.splits)}")
    refuse_misplaced_boxes(data)
    calibrated = calibrate_early_exit(trained, data) if early_exit else None
    measured_on = _split_of(data, split)
    predictions = _predict(trained, measured_on)
    measured = report(predictions, data=data, split=split, bounds=trained.model.bounds)
    if trained.train_digests:
        measured["num_trained_on"] = _num_known(measured_on, set(trained.train_digests))
    if not own:
        splits = {name: photos.records for name, photos in data.splits.items() if name != "all"}
        measured["warnings"] = describe_copies(find_copies(splits), data.class_names)
        measured["passed_over"] = dict(data.passed_over)
    if calibrated is not None:
        early, curve = calibrated
        answers = answers_by_depth(predictions.logits, predictions.fused, early.pools)
        achieved = outcome(answers, predictions.labels, early.threshold, early.costs)
        measured["early_exit"] = {
            "choice": asdict(early),
            "val_curve": [asdict(each) for each in curve],
            **asdict(achieved),
        }
    return measured


def is_data_of_run(trained: Trained, root: Path) -> bool:
    """Return whether a folder or list is the data set of the run: whether it holds most of the run's photos under their names.

    Where the checkpoint knows what its validation photos held, most of these must hold the same.
    """
    root, kind = root.expanduser(), trained.config.data.dataset
    used = [*trained.train_names, *trained.val_names]
    if kind == "synthetic" or root.is_file() != (kind == "manifest"):
        return False
    if kind == "manifest":
        listed = {name for name in list_names(root)}
        there = {name: root.parent / name for name in used if name in listed}
    else:
        inner = root / "CUB_200_2011"
        base = inner if kind == "cub200" and inner.is_dir() else root
        there = {name: base / name for name in used if (base / name).is_file()}
    if len(there) * 2 <= len(used):
        return False
    then = dict(zip(trained.val_names, trained.val_digests, strict=False))
    compared = [name for name in then if name in there and there[name].is_file()]
    found = read_contents([there[name] for name in compared])
    same = [then[name] == file.sha256[:DIGEST_LENGTH] for name, file in zip(compared, found, strict=True)]
    return not same or sum(same) * 2 > len(same)


def _refuse_leaked(trained: Trained, data: Data, split: str) -> None:
    known = {*trained.train_names, *trained.val_names}
    leaked = sorted(known & {record.name for record in data.splits["test"].records})
    if split == "test" and leaked:
        raise DataError(
            f"data.root: {len(leaked)} test photos were used in training, for example '{leaked[0]}': photos were "
            "added or removed since, which draws another test split; restore them, or keep a test/ folder"
        )


def _split_of(data: Data, split: str) -> PhotoDataset:
    """Return the photos of a split; 'all' joins the splits of a run."""
    if split in data.splits:
        return data.splits[split]
    assert split == "all", split
    test = data.splits["test"]
    records = [record for photos in data.splits.values() for record in photos.records]
    return PhotoDataset(test.catalog, records, test.config)


def _num_known(photos: PhotoDataset, known: Collection[str]) -> int:
    """Return how many photos hold the same as one of those known."""
    return sum(found in known for found in _digests(photos.records))


def _digests(records: Sequence[Record]) -> list[str]:
    files = read_contents([record.path for record in records if record.path is not None])
    return [file.sha256[:DIGEST_LENGTH] for file in files]


def calibrate_early_exit(trained: Trained, data: Data) -> tuple[EarlyExit, list[Outcome]]:
    """Choose on the validation photos when a photo needs no further look, see :mod:`racnn.engine.early_exit`.

    Raises:
        ConfigError: Fewer than two scales are trained.
    """
    if trained.scales < 2:
        raise ConfigError("--early-exit: the network has one trained scale, after which it always stops")
    size = trained.config.data.source_size
    costs = scale_costs(trained.model, source_size=size, scales=trained.scales)
    return calibrate(_predict(trained, data.splits["val"]), costs, network=network_digest(trained))


def network_digest(trained: Trained) -> str:
    """Return what identifies the weights of a network."""
    return digest(trained.model.state_dict())


def _predict(trained: Trained, photos: PhotoDataset) -> Predictions:
    return predict(
        trained.model,
        eval_loader(photos, trained.config.data),
        device=next(trained.model.parameters()).device,
        scales=trained.scales,
        fused=trained.fused,
    )


def predict_photos(
    trained: Trained,
    places: Iterable[Path],
    *,
    batch_size: int,
    workers: int = 0,
    early: EarlyExit | None = None,
    top: int = 3,
) -> Iterator[dict[str, Any]]:
    """Say what is on photos, one after another; memory does not grow with their number.

    Args:
        trained: From :func:`load_trained`.
        places: Photos, and folders of photos.
        batch_size: Photos at a time.
        workers: Processes that read photos ahead.
        early: When a photo needs no further look; None: all scales look at every photo.
        top: How many answers.

    Yields:
        A row a photo, in order: ``photo``; ``top``, answers of ``name`` and ``probability``; ``scales``, how many looked;
        ``boxes_xyxy``, where the finer ones did, in the photo's pixels. Of a photo that cannot be read ``photo`` and
        ``error``.

    Raises:
        DataError: A path does not exist, or a folder holds no photos.
    """
    config = trained.config.data
    batches, transform = photo_batches(places, config, batch_size=batch_size, workers=workers)
    device = next(trained.model.parameters()).device
    parts = Parts()

    def answers(part: dict[str, Tensor]) -> list[tuple[list[int], Tensor, list[Tensor]]]:
        images = part["image"].to(device, non_blocking=True)
        stopped = look_until_sure(trained.model, images, early, scales=trained.scales, fused=trained.fused)
        return [
            (part["position"][index.cpu()].tolist(), answer.cpu(), [place.cpu() for place in places])
            for index, answer, places in stopped
        ]

    for batch in batches:
        rows: list[dict[str, Any]] = [{"photo": str(path)} for path in batch.paths]
        for position, error in batch.errors.items():
            rows[position]["error"] = error
        readable = [position for position in range(len(rows)) if position not in batch.errors]
        if not readable:
            yield from rows
            continue
        given = {"image": batch.images, "position": torch.tensor(readable)}
        for positions, answer, composed in itertools.chain(*parts.run(answers, given)):
            boxes = [to_boxes_xyxy(place, (config.source_size, config.source_size)) for place in composed[1:]]
            for i, position in enumerate(positions):
                size = batch.sizes[position]
                assert size is not None
                rows[position] |= {
                    "top": _plain(_best(answer[i], trained.class_names, top)),
                    "scales": len(composed),
                    "boxes_xyxy": [_rounded(transform.to_photo(box[i].tolist(), size)) for box in boxes],
                }
        yield from rows


@torch.no_grad()
def look(trained: Trained, photo: np.ndarray) -> tuple[Image, dict[str, Any]]:
    """Run the recursion on one photo and draw it.

    Args:
        trained: From :func:`load_trained`.
        photo: uint8 [H, W, 3], any size.

    Returns:
        The picture, and a plain dictionary: ``boxes_xyxy`` in the photo's own pixels, one box a region; ``top3``
        per scale and ``fused``, lists of names with probabilities.
    """
    model, config = trained.model, trained.config.data
    transform = SourceTransform(config.source_size, config.resize)
    size = (photo.shape[0], photo.shape[1])
    images = transform.source(photo, size)[None].to(next(model.parameters()).device)
    output = model(images, scales=trained.scales)
    source_size = (config.source_size, config.source_size)
    boxes = [transform.to_photo(box[0].tolist(), size) for box in output.boxes_xyxy(source_size)]
    views = [model.to_pixels(view)[0].cpu() for view in output.views]
    per_scale = [_best(logits[0], trained.class_names) for logits in output.logits]
    fused = (
        _best(output.fused[0], trained.class_names) if trained.fused and output.fused is not None else None
    )
    row = {
        "boxes_xyxy": [_rounded(box) for box in boxes],
        "top3": {f"scale_{s}": _plain(top) for s, top in enumerate(per_scale, start=1)},
        "fused": _plain(fused) if fused else None,
    }
    return viz.panel(photo, boxes, views, per_scale, fused), row


def _rounded(box: Sequence[float]) -> list[float]:
    return [round(value, 2) for value in box]


def _best(logits: Tensor, names: list[str], num: int = 3) -> list[tuple[str, float]]:
    probs, classes = logits.float().softmax(dim=0).topk(min(num, len(names)))
    return [(names[c], p) for c, p in zip(classes.tolist(), probs.tolist(), strict=True)]


def _plain(top: list[tuple[str, float]]) -> list[dict[str, Any]]:
    return [{"name": name, "probability": round(p, 6)} for name, p in top]
