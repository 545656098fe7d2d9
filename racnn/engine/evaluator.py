"""Run a network over photos with labels: the validation of a run, what a phase asks beforehand, ``racnn evaluate``."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from racnn import __version__
from racnn.config import Config
from racnn.data import Data, PhotoDataset, build_data, eval_loader
from racnn.data.build import build_to_measure
from racnn.data.contents import DIGEST_LENGTH, describe_copies, find_copies, read_contents
from racnn.data.sources.catalog import Record
from racnn.data.sources.manifest import list_names
from racnn.data.statistics import refuse_misplaced_boxes
from racnn.engine.checkpoint import Progress, digest, read_rows, write_rows
from racnn.engine.distributed import ALONE, ProcessGroup
from racnn.engine.predictor import Predictor, network_digest
from racnn.engine.stored import StoredRows
from racnn.errors import ConfigError, DataError, TrainingError
from racnn.evaluation import draw
from racnn.evaluation.report import Predictions, evaluation_report
from racnn.models import parts as in_parts
from racnn.models.early_exit import (
    EarlyExit,
    Outcome,
    answers_by_depth,
    calibrate,
    calibrate_by_belief,
    outcome,
    scale_costs,
)
from racnn.models.parts import Parts
from racnn.models.phase import Batch, Phase
from racnn.ops.crop import zoom
from racnn.ops.regions import compose, to_boxes_xyxy

if TYPE_CHECKING:
    from racnn.engine.trainer import Trainer

READ_BY = {
    "source_size",
    "scene_size",
    "resize",
}  # keys of ``data`` that decide what of a photo the network is shown
NORM_BATCHES = 8  # of training photos, from which the mean length of the descriptors is taken


@torch.no_grad()
def predict(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    device: torch.device,
    num_scales: int | None = None,
    propose: bool = False,
    descriptors: bool = False,
    processes: ProcessGroup = ALONE,
    after_batch: Callable[[], None] = lambda: None,
) -> Predictions:
    """Run the network over batches without random changes. What the GPU has no memory for is taken in halves.

    Args:
        model: Put into evaluation mode.
        batches: From :func:`racnn.data.eval_loader`.
        device: Where the network is.
        num_scales: Run only the first ones; None runs all.
        propose: Keep also the proposal of the last of them, which nothing is cropped by.
        descriptors: Keep what the classifiers read, too.
        processes: The processes that share the batches; all of them return the predictions of all photos.
        after_batch: Called after each batch; it may raise to stop.

    Raises:
        TrainingError: An answer is not finite, or there is no memory for a single photo.
    """
    model.eval()

    def answers(batch: Batch) -> dict[str, Any]:
        output = model(batch["image"].to(device, non_blocking=True), num_scales=num_scales)
        regions, kept = output.regions, len(output.regions) - 1 + propose
        proposals, frames = output.proposals[:kept], output.frames[:kept]
        if propose:  # where nothing has looked yet
            regions = [*regions, compose(frames[-1], proposals[-1])]
        if not all(logits.isfinite().all() for logits in output.logits):
            raise TrainingError("the network gives answers that are not finite: its training has diverged")
        return {
            "logits": [x.float().cpu() for x in output.logits],
            "fused": None if output.fused is None else output.fused.float().cpu(),
            "proposals": [x.cpu() for x in proposals],
            "frames": [x.cpu() for x in frames],
            "regions": [x.cpu() for x in regions],
            "descriptors": [x.float().cpu() for x in output.descriptors] if descriptors else [],
            **{key: batch.get(key) for key in ("label", "box", "parts", "pseudo_box")},
        }

    parts, rows = Parts(), []
    for batch in batches:
        rows.append(_joined(parts.run(answers, batch)))
        after_batch()
    every = _joined(processes.gather(rows))
    return Predictions(
        logits=every["logits"],
        fused=every["fused"],
        labels=every["label"],
        proposals=every["proposals"],
        frames=every["frames"],
        regions=every["regions"],
        boxes=every["box"],
        parts=every["parts"],
        descriptors=every["descriptors"],
        pseudo_boxes=every["pseudo_box"],
    )


def _joined(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return rows of tensors, lists of tensors, or None, as one row."""

    def join(values: tuple[Any, ...]) -> Any:
        if isinstance(values[0], list):
            return [torch.cat(parts) for parts in zip(*values, strict=True)]
        return None if values[0] is None else torch.cat(values)

    return {key: join(tuple(row[key] for row in rows)) for key in rows[0]}


def report(predictions: Predictions, *, data: Data, split: str, bounds: Any) -> dict[str, Any]:
    """Return the evaluation of predictions as plain types; the keys are those of ``evaluation.json``.

    ``num_skipped`` counts the damaged photos that were left out of the whole data set.
    """
    measured = evaluation_report(
        predictions,
        dataset=data.dataset,
        split=split,
        class_names=data.class_names,
        bounds=list(bounds)[: len(predictions.proposals)],
        focus_parts=data.focus_parts,
    )
    return measured | {"num_skipped": len(data.skipped)}


def figures(result: dict[str, Any]) -> dict[str, float]:
    """Return a report's figures by names such as ``top1_scale_1`` and ``region_1_iou``."""
    figures = {f"top1_{k}": v for k, v in result["top1"].items()}
    figures |= {f"log_prob_{k}": v for k, v in result["log_prob"].items()}
    for name, statistics in result["regions"].items():
        figures |= {f"{name}_{k}": v for k, v in statistics.items()}
    for name, measures in result["localisation"].items():
        figures |= {f"{name}_{k}": v for k, v in (measures or {}).items() if v is not None}
    return figures


def summary(result: dict[str, Any], before: dict[str, Any] | None = None) -> str:
    """Return a report in a line; of what is as it was in the report before only that it is."""
    old = _shown_values(before) if before else {}
    values = {name: value for name, value in _shown_values(result).items() if old.get(name) != value}
    if not values:
        return "val as before"
    words = "  ".join(f"{name} {value}" for name, value in values.items())
    return f"val top-1 % {words}" if not next(iter(values)).startswith("side_") else f"val {words}"


def _shown_values(result: dict[str, Any]) -> dict[str, str]:
    values = {name: f"{100 * value:.1f}" for name, value in result["top1"].items()}
    return values | {f"side_{name[-1]}": f"{each['tl_mean']:.2f}" for name, each in result["regions"].items()}


def outcome_of(phase: Phase, progress: Progress) -> str:
    """Return which epoch of a finished phase was kept, and by which scores."""
    if phase.keep == "last":
        return "kept the last epoch"
    before = f" ({_shown(progress.start)} before)" if progress.start else ""
    if phase.keep == "if_better" and not progress.best_epoch:
        return f"no epoch was better, nothing changed{before}"
    assert progress.best is not None
    return f"kept epoch {progress.best_epoch}: {_shown(progress.best)}{before}"


def _shown(scores: Mapping[str, float]) -> str:
    """Return scores in words, the mean of several."""
    mean = sum(scores.values()) / len(scores)
    return f"loss {-mean:.4f}" if "loss" in scores else f"log-probability {mean:.3f}"


def preview(predictions: Predictions, photos: PhotoDataset, config: Config, model: Any) -> np.ndarray:
    """Return a picture [H, W, 3] of the first photos with their regions and views, cut as the network cuts them."""
    sample = getattr(model, "sample", zoom)
    plain = photos.without_augmentation()
    images = torch.stack([plain[(0, i)]["image"] for i in range(min(config.run.num_preview, len(plain)))])
    images = images.float() / 255.0
    regions = [region[: len(images)] for region in predictions.regions[1:]]
    boxes = [to_boxes_xyxy(region, (images.shape[2], images.shape[3])) for region in regions]
    sizes = zip(regions, config.model.view_sizes[1:], strict=False)
    views = [sample(images, region, (side, side)).clamp(0, 1) for region, side in sizes]
    return draw.preview(images, boxes, views)


class Context:
    """What a phase may use before its first step, see :class:`racnn.models.phase.PhaseContext`."""

    def __init__(self, trainer: Trainer, phase: Phase) -> None:
        self.trainer = trainer
        self.phase = phase
        self.model = trainer.model

    def read(
        self, what: str, split: str, call: Callable[..., Any], *, most: int | None = None, **settings: Any
    ) -> Any:
        """Return what a call finds in the photos of a split, showing how far it is; leave if told to stop."""
        trainer = self.trainer
        batches = trainer.eval_batches(split, most=most)
        trainer.logger.start_bar(f"{self.phase.name}: {what}, {split}", len(batches), 0)
        found = call(
            self.model,
            batches,
            device=trainer.device,
            gather=trainer.processes.gather,
            after_batch=self._after_batch,
            **settings,
        )
        trainer.logger.close_bar()
        self._stop_if_told()
        return found

    def store(
        self,
        name: str,
        split: str,
        call: Callable[..., None],
        *,
        depends_on: Sequence[Tensor],
        **settings: Any,
    ) -> Tensor:
        """Return rows of all photos that a call gives away, see :class:`PhaseContext`."""
        trainer = self.trainer
        assert trainer.processes.size == 1
        rows = StoredRows(
            trainer.folder / "views" / f"{name}.bin", self._key(split, depends_on), self.num_photos(split)
        )
        stored = rows.read()
        if stored is None:
            batches = trainer.eval_batches(split)
            trainer.logger.start_bar(f"{self.phase.name}: {name}, {split}", len(batches), 0)
            call(
                self.model,
                batches,
                device=trainer.device,
                keep=rows.keep,
                after_batch=self._after_batch,
                **settings,
            )
            trainer.logger.close_bar()
            stored = rows.finish()
        trainer.data.splits[split].stored[name] = stored
        return stored

    def read_stored(
        self, what: str, split: str, read: Callable[[Tensor], dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """Return what a call makes of all photos of a split, given their positions, see :class:`PhaseContext`."""
        trainer = self.trainer
        size = trainer.config.data.eval_batch_size
        batches = [{"index": index} for index in torch.arange(self.num_photos(split)).split(size)]
        trainer.logger.start_bar(f"{self.phase.name}: {what}, {split}", len(batches), 0)
        self.model.eval()
        found = in_parts.read_rows(
            lambda batch: read(batch["index"]), batches, device=trainer.device, after_batch=self._after_batch
        )
        trainer.logger.close_bar()
        return found

    def _after_batch(self) -> None:
        self.trainer.logger.tick()
        if self.trainer.processes.size == 1:  # several stop together, after the last batch
            self._stop_if_told()

    def _stop_if_told(self) -> None:
        """Stop with a checkpoint to go on from, if the run was told to."""
        if self.trainer.stopped():
            if not (self.trainer.folder / "last.pt").exists():
                self.trainer.save_last(None)
            self.trainer.stop()

    def num_photos(self, split: str) -> int:
        """Return how many photos a split has."""
        return len(self.trainer.data.splits[split])

    def attach(self, split: str, boxes: Tensor) -> None:
        """Let the photos of a split bring along a pseudo box each."""
        self.trainer.data.splits[split].pseudo_boxes = boxes.numpy()

    def detach(self) -> None:
        """Let photos bring neither a box nor rows along."""
        for photos in self.trainer.data.splits.values():
            photos.pseudo_boxes = None
            photos.stored = {}

    def descriptor_norms(self) -> list[float]:
        """Return the mean length of each scale's descriptors, from some training photos of all classes."""
        trainer = self.trainer
        some = itertools.islice(trainer.train_batches(self.phase), NORM_BATCHES)  # shuffled
        found = predict(
            self.model, some, device=trainer.device, descriptors=True, processes=trainer.processes
        )
        return [descriptors.norm(dim=1).mean().item() for descriptors in found.descriptors]

    def descriptors(self, split: str, num_scales: int) -> tuple[list[Tensor], Tensor]:
        """Return the descriptors [N, D] of each scale on the photos of a split, unchanged and in order, and the labels."""
        trainer = self.trainer
        found = predict(
            self.model,
            trainer.eval_batches(split),
            device=trainer.device,
            num_scales=num_scales,
            descriptors=True,
            processes=trainer.processes,
            after_batch=self._stop_if_told if trainer.processes.size == 1 else lambda: None,
        )
        self._stop_if_told()
        return found.descriptors, found.labels

    def answers(self) -> tuple[list[Tensor], Tensor]:
        """Return the logits of every scale on the validation photos, and the labels."""
        predictions = self.trainer.predict(self.model.num_scales, fused=False)
        return predictions.logits, predictions.labels

    def remember(
        self, name: str, depends_on: Sequence[Tensor | None], make: Callable[[], dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """Return what ``make`` returns, or what an earlier start of the run wrote of it, see :class:`PhaseContext`."""
        trainer, model = self.trainer, self.model
        parts = (model.backbones, model.apns, getattr(model, "attentions", nn.ModuleList()))
        values = [value for part in parts for value in part.state_dict().values()]
        key = self._key(self.phase.photos, [*values, *depends_on])
        file = trainer.folder / "descriptors" / f"{name}.safetensors"
        stored: dict[str, Tensor] | None = trainer.processes.from_main_process(partial(read_rows, file, key))
        if stored is not None:
            return stored
        made = make()
        if trainer.processes.is_main_process:
            try:
                write_rows(file, key, made)
            except OSError as error:  # such as a full disk: only a run that is killed has more to do again
                trainer.logger.log(
                    f"{file} could not be written ({error.strerror}); the run goes on without it"
                )
        return made

    def _key(self, split: str, depends_on: Sequence[Tensor | None]) -> str:
        """Return a digest of the photos of a split, how they are read, by which network, and of tensors."""
        trainer = self.trainer
        return digest(
            {
                "photos": [(r.name, r.label) for r in trainer.data.splits[split].records],
                "contents": trainer.photo_digests(),
                "data": trainer.config.data.model_dump(mode="json", include=READ_BY),
                "model": trainer.config.model.model_dump(mode="json"),
                "where": [trainer.device.type, str(trainer.model.compute_dtype), __version__],
                "depends_on": list(depends_on),
            }
        )

    def choose_early_exit(
        self,
        logits: Sequence[Tensor],
        fused: Tensor,
        labels: Tensor,
        *,
        tolerance: float,
        on_validation: bool = False,
    ) -> None:
        """Choose when a photo needs no further look, see :class:`PhaseContext`."""
        trainer, model = self.trainer, self.model
        costs = scale_costs(model, source_size=trainer.config.data.source_size, scales=len(logits))
        network = digest(model.state_dict())
        early = calibrate_by_belief(logits, fused, labels, costs, network=network, tolerance=tolerance)
        trainer.progress.early_exit = asdict(replace(early, on_validation=on_validation))

    def log(self, text: str) -> None:
        """Print a line."""
        self.trainer.logger.log(text)


def data_of(trained: Predictor, *, root: Path | None = None, skip_damaged: bool = False) -> Data:
    """Return the dataset that a network was trained on, split as its run had it.

    Args:
        trained: The network.
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


@dataclass(frozen=True)
class Measured:
    """What a network made of photos with labels.

    Attributes:
        report: From :func:`racnn.evaluation.report.evaluation_report`, with more keys, see :func:`measure_trained`.
        predictions: What it was made from.
        photos: In the same order.
        data: The data set that they are of.
        early_exit: When a photo needs no further look, where that was asked for.
    """

    report: dict[str, Any]
    predictions: Predictions
    photos: PhotoDataset
    data: Data
    early_exit: EarlyExit | None


def evaluate_trained(trained: Predictor, **options: Any) -> dict[str, Any]:
    """Return the report of :func:`measure_trained`, whose options and errors it has."""
    return measure_trained(trained, **options).report


def measure_trained(
    trained: Predictor,
    *,
    split: str | None = None,
    root: Path | None = None,
    skip_damaged: bool = False,
    early_exit: bool = False,
    descriptors: bool = False,
) -> Measured:
    """Answer photos with labels, a split of what the network was trained on, or others, and measure the answers.

    Args:
        trained: The network.
        split: 'test', 'val', 'train' or 'all'; of the run's own photos 'val' is exactly what the run held out. None is the test
            photos of the run, and all of other photos.
        root: The run's dataset where it is no longer where it was, or other photos: a list or folder that
            :func:`racnn.data.build.build_to_measure` reads, with some of the network's classes.
        skip_damaged: Leave out photos that cannot be read; their number is ``num_skipped`` of the report.
        early_exit: Also choose on the validation photos when a photo needs no further look, unless training has chosen it,
            and report as ``early_exit`` the choice, its curve on the validation photos, and what it makes of the split.
        descriptors: Keep what the classifiers read, too.

    Returns:
        With the report of :func:`racnn.evaluation.report.evaluation_report`. Of files that can be compared ``num_trained_on`` says how many
        of the photos were trained on, by their contents; of other photos ``passed_over`` counts the files beside them that
        are none, by kind, and ``warnings`` are lines about copies among them.

    Raises:
        ConfigError: ``early_exit`` with one trained scale, or on other photos; a split that other photos do not bring.
        DataError: The photos are missing, one is damaged or of a class that the network does not know, or the run's test
            photos were trained on.
    """
    own = root is None or is_data_of_run(trained, root)
    if early_exit and not own and trained.early_exit is None:
        raise ConfigError(f"--early-exit: chooses on the run's validation photos, which are not in {root}")
    data = (
        data_of(trained, root=root, skip_damaged=skip_damaged)
        if root is None or own
        else _other_data(trained, root, skip_damaged=skip_damaged)
    )
    split = split or ("test" if own else "all")
    if own:
        _refuse_leaked(trained, data, split)
    elif split not in data.splits:
        raise ConfigError(f"--split {split}: {root} brings no such photos, only {', '.join(data.splits)}")
    refuse_misplaced_boxes(data)
    calibrated: tuple[EarlyExit, list[Outcome]] | None = None
    if early_exit:
        stored = trained.early_exit
        calibrated = calibrate_early_exit(trained, data) if stored is None else (stored, [])
    measured_on = _split_of(data, split)
    predictions = predict_split(trained, measured_on, descriptors=descriptors)
    measured = report(predictions, data=data, split=split, bounds=trained.model.bounds)
    if trained.train_digests:
        measured["num_trained_on"] = _num_known(measured_on, set(trained.train_digests))
    if not own:
        splits = {name: photos.records for name, photos in data.splits.items() if name != "all"}
        measured["warnings"] = describe_copies(find_copies(splits), data.class_names)
        measured["passed_over"] = dict(data.passed_over)
    if calibrated is not None:
        measured["early_exit"] = _early_exit_report(*calibrated, predictions)
    return Measured(measured, predictions, measured_on, data, calibrated[0] if calibrated else None)


def _other_data(trained: Predictor, root: Path, *, skip_damaged: bool) -> Data:
    changes = {"on_error": "skip", "most_skipped": 1.0} if skip_damaged else {}
    config = trained.config.data.model_copy(update=changes)
    return build_to_measure(config, root, class_names=trained.class_names)


def _early_exit_report(early: EarlyExit, curve: list[Outcome], predictions: Predictions) -> dict[str, Any]:
    answers = answers_by_depth(predictions.logits, predictions.fused, early.pools)
    achieved = outcome(answers, predictions.labels, early.threshold, early.costs, early.later)
    return {
        "choice": asdict(early),
        "val_curve": [asdict(each) for each in curve],
        **asdict(achieved),
    }


def is_data_of_run(trained: Predictor, root: Path) -> bool:
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


def _refuse_leaked(trained: Predictor, data: Data, split: str) -> None:
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


def refuse_early_exit(trained: Predictor) -> None:
    """Refuse a network that always looks as often.

    Raises:
        ConfigError: Its looks cannot be taken one at a time.
    """
    if not hasattr(trained.model, "look"):
        raise ConfigError(
            f"--early-exit: a network of model.family {trained.config.model.family} always looks as often"
        )


def calibrate_early_exit(trained: Predictor, data: Data) -> tuple[EarlyExit, list[Outcome]]:
    """Choose on the validation photos when a photo needs no further look, see :mod:`racnn.models.early_exit`.

    Raises:
        ConfigError: Fewer than two scales are trained.
    """
    refuse_early_exit(trained)
    if trained.scales < 2:
        raise ConfigError("--early-exit: the network has one trained scale, after which it always stops")
    size = trained.config.data.source_size
    costs = scale_costs(trained.model, source_size=size, scales=trained.scales)
    found = predict_split(trained, data.splits["val"])
    return calibrate(found.logits, found.fused, found.labels, costs, network=network_digest(trained))


def predict_split(trained: Predictor, photos: PhotoDataset, *, descriptors: bool = False) -> Predictions:
    """Return what a network makes of photos without random changes, as far as it was trained."""
    device = next(trained.model.parameters()).device
    batches = tqdm(eval_loader(photos, trained.config.data), desc="photos", leave=False, disable=None)
    found = predict(trained.model, batches, device=device, num_scales=trained.scales, descriptors=descriptors)
    return found if trained.fused else replace(found, fused=None)
