"""A run: its network, data, progress and folder, made anew or taken up from where it was stopped."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, cast

import torch

from racnn.config import Config, dump_config
from racnn.data import build_data
from racnn.data.contents import WORDS, PhotoFile, describe_copies, find_copies
from racnn.data.listing import describe_passed
from racnn.data.loader import num_left_over
from racnn.data.names import lookalike_warnings
from racnn.data.statistics import refuse_misplaced_boxes
from racnn.engine.checkpoint import is_whole, save_checkpoint
from racnn.engine.device import prepare
from racnn.engine.distributed import ALONE, ProcessGroup
from racnn.engine.folder import (
    RunFolder,
    refuse_other_batches,
    refuse_other_photos,
    refuse_output_among_classes,
)
from racnn.engine.logger import Logger, Silence
from racnn.engine.progress import Progress
from racnn.engine.provenance import digests, provenance, read_photo_files, with_start
from racnn.engine.signals import Interrupt, Stop
from racnn.engine.stored import Content, open_checkpoint
from racnn.engine.validation import Validation
from racnn.errors import CheckpointError
from racnn.evaluation.diagnostics import imbalance_warning
from racnn.models import build_model
from racnn.models.racnn.losses import balanced_weights

MOST_COPIES = 20  # groups of copies, or classes, that are named at the start of a run


class Run:
    """One run's network, data, progress and folder; :class:`racnn.engine.trainer.Trainer` takes it through its phases.

    Args:
        config: The whole of it; ``run.out`` names the run's folder.
        device: Where to train.
        resume: Go on from the folder's ``last.pt``.
        overwrite: Delete an earlier run in the folder first.
        world: The processes that train together.

    Raises:
        ConfigError: As :func:`racnn.engine.trainer.fit` does.
    """

    def __init__(
        self,
        config: Config,
        *,
        device: torch.device,
        resume: bool,
        overwrite: bool,
        world: ProcessGroup = ALONE,
    ) -> None:
        self.config = config
        self.device = device
        self.world = world
        self.folder = Path(config.run.out)
        self.interrupt = Interrupt()
        self.progress = Progress()
        self.logger = cast(Logger, Silence())
        self._place = RunFolder(self.folder)
        self._files: dict[str, PhotoFile] = {}
        world.from_main_process(lambda: refuse_output_among_classes(config))
        restarted = world.restarted()

        def open_place() -> Content | None:
            stored = self._place.open(config, world, resume=resume, overwrite=overwrite, restarted=restarted)
            return stored.content if stored else None

        try:
            self._build(world.from_main_process(open_place))
        except BaseException:
            self.leave_folder()
            raise

    def _build(self, content: Content | None) -> None:
        """Make or take up the network and the data, and enter the folder last."""
        config, device, world = self.config, self.device, self.world
        self.data = world.main_process_first(
            lambda: build_data(
                config.data,
                seed=config.run.seed,
                val_names=content.val_names if content else None,
                class_names=content.class_names if content else None,
            )
        )
        torch.manual_seed(config.run.seed)
        num_classes = len(self.data.class_names)
        self.model = world.main_process_first(
            lambda: build_model(config.model, num_classes=num_classes, weights=content is None)
        )
        self.optimizer_state: dict[str, Any] | None = None  # of a phase that is taken up in its middle
        world.from_main_process(lambda: self._read_files(again=content is not None))
        if content:
            world.main_process_first(lambda: refuse_other_batches(content, self.data, config.data.batch_size))
            found = digests(self._files)  # of the first process alone
            world.main_process_first(lambda: refuse_other_photos(content, self.data, found))
            self._take_up(content)
        phases = [phase.resolved(config.model.num_scales) for phase in config.phases()]
        enlargements = [pair for phase in phases for pair in phase.enlargements()]
        world.main_process_first(lambda: self.model.check_views(enlargements))
        prepare(self.model, config, device)
        self.validation = Validation(
            self.model, self.data, config, device, world, after_batch=self._leave_validation
        )
        balanced = config.data.balance == "weights"
        self.class_weights = balanced_weights(self.data.class_counts()).to(device) if balanced else None
        # before an earlier run is deleted: a photo may be damaged, a disk full
        world.main_process_first(lambda: self._use_cache(print if world.is_main_process else lambda _: None))
        # before an earlier run is deleted, too
        self._warnings = world.from_main_process(self._find_warnings)
        start = provenance(config, self.data, device, step=self.progress.step, world=world)
        self._starts = with_start(content.provenance if content else [], start)
        world.from_main_process(lambda: self._enter_folder(new=content is None))
        self._say_what_begins()

    def _read_files(self, *, again: bool) -> None:
        """Find out what the photos hold; ``again``: those that are as they were when the run was here last are not read."""
        refuse_misplaced_boxes(self.data)
        self._files = read_photo_files(self.data, self._place.known_contents() if again else {})

    def _enter_folder(self, *, new: bool) -> None:
        """Make the run's folder what this run begins with, and begin to record in it."""
        resolved = self._place.enter(self.config, self._starts, new=new, contents=self._files)
        self.logger = Logger(self.folder, step=self.progress.step, length=self.progress.log_length)
        self.logger.text("config", f"```yaml\n{resolved}\n```")

    def leave_folder(self) -> None:
        """Stop recording, and let other processes use the folder."""
        self.logger.close()
        self._place.leave(self.progress.step)

    def _take_up(self, content: Content) -> None:
        """Go on from a checkpoint that :func:`racnn.engine.folder.open_folder` found to be in order."""
        self.model.load_state_dict(content.model)
        assert content.progress is not None
        self.progress = content.progress
        self.optimizer_state = content.optimizer
        best_is_whole = self.world.from_main_process(lambda: is_whole(self.folder / "best.pt"))
        if self.progress.best_key and not best_is_whole:
            if self.world.is_main_process:
                print(
                    "warning: best.pt cannot be read; the network at the end of the next phase takes its place"
                )
            self.progress.best_key = []

    def _say_what_begins(self) -> None:
        data = self.data
        for name, reason in data.skipped.items():
            self.logger.log(f"left out {name}: {reason}")
        sizes = ", ".join(f"{len(photos)} {split}" for split, photos in data.splits.items())
        self.logger.log(f"{data.dataset}: {len(data.class_names)} classes, photos: {sizes}; on {self.device}")
        if data.passed_over:
            self.logger.log(describe_passed(data.passed_over))
        for line in self._warnings:
            self.logger.log(f"warning: {line}")
        for split in data.splits.keys() & {"train", "held_out"}:
            if num_left_over(len(data.splits[split]), self.config.data.batch_size) == 1:
                self.logger.log(
                    f"{split}: {len(data.splits[split])} photos leave a single one over at {self.config.data.batch_size} a batch; it "
                    "joins the batch before it"
                )
        balance = self.config.data.balance
        if warning := imbalance_warning(data.class_counts(), data.class_names, balance):
            self.logger.log(f"warning: {warning}")

    def _find_warnings(self) -> list[str]:
        """Return what makes the figures of this run worth less than they look."""
        data = self.data
        splits = {split: photos.records for split, photos in data.splits.items()}
        copies = describe_copies(find_copies(splits), data.class_names, most=MOST_COPIES)
        found = ["\n".join(copies)] if copies else []
        for split in ("val", "test"):
            labels = {record.label for record in splits[split]}
            if missing := [name for label, name in enumerate(data.class_names) if label not in labels]:
                named = ", ".join(f"'{name}'" for name in missing[:MOST_COPIES])
                more = ", ..." if len(missing) > MOST_COPIES else ""
                found.append(
                    f"no {WORDS[split]} photos of {len(missing)} classes, which are not measured: {named}{more}"
                )
        return found + lookalike_warnings(data.class_names)

    def _use_cache(self, say: Callable[[str], None]) -> None:
        """Read decoded photos from the cache, if there is to be one; write it first where it is not there."""
        if self.config.data.cache is not None:
            for split in sorted(self.data.splits.keys() - {"test"}):
                self.data.splits[split].use_cache(say)

    def best_report(self) -> dict[str, Any]:
        """Return the validation report of ``best.pt``."""
        report_: dict[str, Any] = self.world.from_main_process(self._read_best_report)
        return report_

    def _read_best_report(self) -> dict[str, Any]:
        stored = open_checkpoint(self.folder / "best.pt")
        if stored.content.val_report is None:
            raise CheckpointError(
                f"{stored.path}: holds no report on the validation photos, so it is no best.pt"
            )
        return stored.content.val_report

    def stopped(self) -> bool:
        """Return whether this process or another one was told to stop."""
        if self.world.size == 1:
            return bool(self.interrupt.signal)
        told = torch.tensor(float(bool(self.interrupt.signal)), device=self.device)
        return bool(self.world.total(told).item())

    def stop_if_told(self) -> None:
        """Leave here, where everything is saved, if this process or another one was told to stop."""
        if self.stopped():
            self.stop()

    def stop(self) -> NoReturn:
        """Leave here, where everything is saved, together with the other processes."""
        self.world.wait()  # or torchrun would end the first process while it writes
        raise Stop

    def _leave_validation(self) -> None:
        """Leave in the middle of a validation, which a run that is taken up from its last checkpoint repeats."""
        if self.world.size == 1 and (self.folder / "last.pt").exists():
            self.stop_if_told()

    def _content(self) -> dict[str, Any]:
        found = digests(self._files)
        return {
            "model": {key: value.cpu() for key, value in self.model.state_dict().items()},
            "config": dump_config(self.config),
            "dataset": self.data.dataset,
            "class_names": list(self.data.class_names),
            "val_names": list(self.data.val_names),
            "train_names": self.data.training_names(),
            "train_digests": [found[name] for name in self.data.training_names() if name in found],
            "val_digests": [found[name] for name in self.data.val_names if name in found],
            "trained_scales": self.progress.trained_scales,
            "fusion_trained": self.progress.fusion_trained,
            "step": self.progress.step,
            "provenance": self._starts,
        }

    def save_last(self, optimizer: torch.optim.Optimizer | None) -> None:
        """Write ``last.pt``, with the state of the optimizer in the middle of a phase, and keep the one before."""
        if not self.world.is_main_process:
            return
        self.progress.log_length = self.logger.length()
        content = self._content() | {
            "progress": dict(vars(self.progress)),
            "optimizer": None if optimizer is None else optimizer.state_dict(),
        }
        save_checkpoint(self.folder / "last.pt", content, previous=self.folder / "previous.pt")

    def save_best(self, phase_name: str) -> None:
        """Write ``best.pt`` if this network is more complete than the best one so far, or as complete and better."""
        progress = self.progress
        scales = max(progress.trained_scales, 1)
        validation = self.validation
        result = validation.report(validation.predict(scales, fused=progress.fusion_trained))
        name = "fused" if "fused" in result["top1"] else "mean"
        key = [float(scales + progress.fusion_trained), result["top1"][name], result["log_prob"][name]]
        if not progress.best_key or key >= progress.best_key:
            progress.best_key = key
            if self.world.is_main_process:
                save_checkpoint(
                    self.folder / "best.pt", self._content() | {"val_report": result, "phase": phase_name}
                )
