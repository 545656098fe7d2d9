"""Fit: run the phases of a configuration on its data, keep the best network, go on where a run was stopped.

Everything random is a function of the seed and a counter: the order of the photos of (seed, epoch), their changes and
the shaking of their regions of (seed, epoch, photo), what a backbone draws of (seed, step). So a checkpoint needs no
random state, and a run that is stopped and resumed ends with the weights it would have had.
"""

from __future__ import annotations

import copy
import gc
import itertools
import json
import signal
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn, cast

import torch
from torch import Tensor

from racnn.config import Config, dump_config
from racnn.data import build_data, mix_seed, train_loader
from racnn.engine.checkpoint import is_whole, save_checkpoint
from racnn.engine.distributed import ALONE, World, join, leave, own_device
from racnn.engine.folder import DUMP, RunFolder, refuse_other_photos
from racnn.engine.interrupt import Interrupt, Stop
from racnn.engine.lessons import read_boxes
from racnn.engine.loop import predict, train_one_epoch
from racnn.engine.phases import Phase, upcoming
from racnn.engine.pool import pool_weights
from racnn.engine.precision import determinism, prepare
from racnn.engine.progress import Progress
from racnn.engine.provenance import provenance, with_start
from racnn.engine.readings import NonFiniteError, Readings, Taken
from racnn.engine.recorder import Recorder, Silence
from racnn.engine.remarks import collapse_warning, imbalance_warning
from racnn.engine.resume import restore_optimizer
from racnn.engine.schedule import better, learning_rate, phase_items
from racnn.engine.steps import build_optimizer, train_only
from racnn.engine.stored import Content, open_checkpoint
from racnn.engine.validation import Validation, flat, summary
from racnn.errors import CheckpointError, TrainingError
from racnn.losses import balanced_weights
from racnn.models import build_model

NORM_BATCHES = 8  # of training photos, from which the mean length of the descriptors is taken


def fit(
    config: Config, *, device: torch.device, resume: bool = False, overwrite: bool = False
) -> tuple[Path, dict[str, Any]]:
    """Train as the configuration says.

    Args:
        config: The whole of it; ``run.out`` names the run's folder.
        device: Where to train.
        resume: Go on from the folder's ``last.pt``.
        overwrite: Delete an earlier run in the folder first.

    Returns:
        The path of ``best.pt`` and its report on the validation photos.

    Raises:
        ConfigError: The folder holds a run and neither ``resume`` nor ``overwrite`` was asked for, or the
            configuration differs from the one of the run to resume.
        SystemExit: 143 or 130 after SIGTERM or SIGINT, with ``last.pt`` saved.
    """
    device = own_device(device)
    world = join(device)
    with determinism(config.run.deterministic, device):
        run = Run(config, device=device, world=world, resume=resume, overwrite=overwrite)
        with run.interrupt:
            try:
                run.train()
                report = run.best_report()
            except Stop:
                number = run.interrupt.signal or signal.SIGTERM
                run.recorder.say(
                    f"stopped by signal {number} after step {run.progress.step}; go on with --resume"
                )
                raise SystemExit(128 + number) from None
            finally:
                run.leave_folder()
    leave()
    return run.folder / "best.pt", report


class Run:
    """One run's network, data, progress and folder."""

    def __init__(
        self,
        config: Config,
        *,
        device: torch.device,
        resume: bool,
        overwrite: bool,
        world: World = ALONE,
    ) -> None:
        self.config = config
        self.device = device
        self.world = world
        self.folder = Path(config.run.out)
        self.interrupt = Interrupt()
        self.progress = Progress()
        self.recorder = cast(Recorder, Silence())
        self._micro_batch = 0  # smaller than the configuration's where the GPU turns out to be
        self._place = RunFolder(self.folder)
        restarted = world.restarted()

        def open_place() -> Content | None:
            stored = self._place.open(config, world, resume=resume, overwrite=overwrite, restarted=restarted)
            return stored.content if stored else None

        try:
            self._build(world.from_first(open_place))
        except BaseException:
            self.leave_folder()
            raise

    def _build(self, content: Content | None) -> None:
        """Make or take up the network and the data, and enter the folder last."""
        config, device, world = self.config, self.device, self.world
        self.data = world.first_before_others(
            lambda: build_data(
                config.data,
                seed=config.run.seed,
                val_names=content.val_names if content else None,
                class_names=content.class_names if content else None,
            )
        )
        torch.manual_seed(config.run.seed)
        num_classes = len(self.data.class_names)
        self.model = world.first_before_others(
            lambda: build_model(config.model, num_classes=num_classes, weights=content is None)
        )
        self._optimizer_state: dict[str, Any] | None = None
        if content:
            world.first_before_others(lambda: refuse_other_photos(content, self.data))
            self._take_up(content)
        taught = [phase for phase in config.phases() if phase.kind == "apn_init"]
        every = range(1, config.model.num_scales)
        enlargements = [(s, phase.enlarge) for phase in taught for s in phase.scales or every]
        world.first_before_others(lambda: self.model.check_enlargements(enlargements))
        prepare(self.model, config, device)
        self.validation = Validation(
            self.model, self.data, config, device, world, after_batch=self._leave_validation
        )
        balanced = config.data.balance == "weights"
        self.class_weights = balanced_weights(self.data.class_counts()).to(device) if balanced else None
        # before an earlier run is deleted: a photo may be damaged, a disk full
        world.first_before_others(lambda: self._use_cache(print if world.first else lambda _: None))
        start = provenance(config, self.data, device, step=self.progress.step, world=world)
        self._starts = with_start(content.provenance if content else [], start)
        world.from_first(lambda: self._enter_folder(new=content is None))
        self._say_what_begins()

    def _enter_folder(self, *, new: bool) -> None:
        """Make the run's folder what this run begins with, and begin to record in it."""
        resolved = self._place.enter(self.config, self._starts, new=new)
        self.recorder = Recorder(self.folder, step=self.progress.step, length=self.progress.log_length)
        self.recorder.text("config", f"```yaml\n{resolved}\n```")

    def leave_folder(self) -> None:
        """Stop recording, and let other processes use the folder."""
        self.recorder.close()
        self._place.leave(self.progress.step)

    def _take_up(self, content: Content) -> None:
        """Go on from a checkpoint that :func:`racnn.engine.folder.open_folder` found to be in order."""
        self.model.load_state_dict(content.model)
        assert content.progress is not None
        self.progress = content.progress
        self._optimizer_state = content.optimizer
        best_is_whole = self.world.from_first(lambda: is_whole(self.folder / "best.pt"))
        if self.progress.best_key and not best_is_whole:
            if self.world.first:
                print(
                    "warning: best.pt cannot be read; the network at the end of the next phase takes its place"
                )
            self.progress.best_key = []

    def _say_what_begins(self) -> None:
        data = self.data
        for name, reason in data.skipped.items():
            self.recorder.say(f"left out {name}: {reason}")
        sizes = ", ".join(f"{len(photos)} {split}" for split, photos in data.splits.items())
        self.recorder.say(
            f"{data.dataset}: {len(data.class_names)} classes, photos: {sizes}; on {self.device}"
        )
        balance = self.config.data.balance
        if warning := imbalance_warning(data.class_counts(), data.class_names, balance):
            self.recorder.say(f"warning: {warning}")

    def _use_cache(self, say: Callable[[str], None]) -> None:
        """Read decoded photos from the cache, if there is to be one; write it first where it is not there."""
        if self.config.data.cache is not None:
            for split in sorted(self.data.splits.keys() - {"test"}):
                self.data.splits[split].use_cache(say)

    def train(self) -> None:
        """Run the phases that are left."""
        while (phase := upcoming(self.config, self.progress.outcomes)) is not None:
            changed = self._run_phase(phase)
            progress = self.progress
            progress.outcomes.append(changed)
            progress.epoch = progress.batch = progress.stale = progress.best_epoch = 0
            progress.start = progress.best = progress.best_weights = None
            self._save_last(None)
            self._stop_if_told()

    def best_report(self) -> dict[str, Any]:
        """Return the validation report of ``best.pt``."""
        report_: dict[str, Any] = self.world.from_first(self._read_best_report)
        return report_

    def _read_best_report(self) -> dict[str, Any]:
        stored = open_checkpoint(self.folder / "best.pt")
        if stored.content.val_report is None:
            raise CheckpointError(
                f"{stored.path}: holds no report on the validation photos, so it is no best.pt"
            )
        return stored.content.val_report

    def _run_phase(self, phase: Phase) -> bool:
        """Run one phase, or the rest of it, and return whether it changed the network."""
        progress, config = self.progress, phase.config
        self._micro_batch = self.config.run.micro_batch  # phases need more or less memory
        if progress.start is None:
            self._begin(phase)
        optimizer = build_optimizer(self.model, phase)
        if self._optimizer_state is not None:
            restore_optimizer(optimizer, self._optimizer_state)
            self._optimizer_state = None
        if config.kind == "apn_init":
            self._read_lessons(phase)
        batches = len(self._loader(phase, 0))
        self.recorder.start_bar(
            phase.name, config.epochs * batches, progress.epoch * batches + progress.batch
        )
        while progress.epoch < config.epochs and not (config.patience and progress.stale >= config.patience):
            self._run_epoch(phase, optimizer, batches)
            self._finish_epoch(phase, optimizer)
        self.recorder.close_bar()
        for photos in self.data.splits.values():
            photos.lessons = None
        return self._end(phase)

    def _begin(self, phase: Phase) -> None:
        """Do what a phase does once, before its first step."""
        progress, config = self.progress, phase.config
        if config.init_from is not None:
            for scale in phase.scales:
                if scale != config.init_from:
                    self.model.copy_scale(config.init_from, scale)
        if config.kind == "fusion":
            some = itertools.islice(self._loader(phase, 0), NORM_BATCHES)  # shuffled: photos of all classes
            norms = predict(self.model, some, device=self.device, world=self.world).norms
            predictions = self.validation.predict(self.model.num_scales, fused=False)
            weights = pool_weights(predictions.logits, predictions.labels)
            self.model.start_fusion_from_classifiers(norms, weights)
            shown = ", ".join(f"{weight:.2f}" for weight in weights)
            self.recorder.say(f"{phase.name}: the scales count {shown} at its start")
            progress.fusion_trained = True
        if config.kind == "classification":
            progress.trained_scales = max(progress.trained_scales, *phase.scales)
        progress.start = {}
        if config.keep == "if_better":
            progress.start = self._validate(phase)
            progress.best = progress.start
            progress.best_weights = self._weights(phase)

    def _read_lessons(self, phase: Phase) -> None:
        """Give the photos the boxes that the phase teaches. A phase that is taken up again reads the same ones."""
        (scale,) = phase.scales

        def after_batch() -> None:
            self.recorder.tick()
            if self.world.size == 1:  # several stop together, after the last batch
                stop_here()

        def stop_here() -> None:
            if self._stopped():
                if not (self.folder / "last.pt").exists():
                    self._save_last(None)
                self._stop()

        for split in (phase.config.photos, "val"):
            photos = self.data.splits[split]
            batches = self.validation.batches(split)
            self.recorder.start_bar(f"{phase.name}: reading boxes, {split}", len(batches), 0)
            photos.lessons = read_boxes(
                self.model,
                batches,
                scale,
                phase.config,
                device=self.device,
                world=self.world,
                after_batch=after_batch,
            ).numpy()
            self.recorder.close_bar()
            stop_here()

    def _run_epoch(self, phase: Phase, optimizer: torch.optim.Optimizer, batches: int) -> None:
        progress = self.progress
        total = phase.config.epochs * batches

        def before_step() -> None:
            torch.manual_seed(
                mix_seed(self.config.run.seed, progress.step) >> 1
            )  # fits a signed 64-bit number
            done = (progress.epoch * batches + progress.batch) / total
            for group in optimizer.param_groups:
                group["lr"] = group["base_lr"] * learning_rate(done, phase.config.warmup)

        first = progress.step

        def after_step(readings: Readings) -> None:
            progress.batch += 1
            progress.step += 1
            every = self.config.run.save_every
            last = progress.batch == batches  # after which _finish_epoch saves
            due = bool(every and progress.step % every == 0)
            taken = self._record(readings.read(everything=last), first, phase)
            # several processes stop at the same step, all of them knowing
            stopped = any(step.stop for step in taken) if self.world.size > 1 else bool(self.interrupt.signal)
            if not last and (due or stopped):
                self._record(readings.read(everything=True), first, phase)
                self._save_last(optimizer)
                if stopped:
                    self._stop()

        train_only(self.model, phase)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        try:
            self._micro_batch = train_one_epoch(
                self.model,
                self._loader(phase, progress.batch),
                phase=phase,
                optimizer=optimizer,
                device=self.device,
                class_weights=self.class_weights,
                micro_batch=self._micro_batch,
                world=self.world,
                say=self.recorder.say,
                stop=lambda: bool(self.interrupt.signal),
                before_step=before_step,
                after_step=after_step,
            )
        except NonFiniteError as error:
            # back to the last step that was taken: a GPU has others in hand by now
            progress.batch -= progress.step - (first + error.number)
            progress.step = first + error.number
            path = self._dump(phase, error)
            if not self.world.first:  # the first process says it
                raise SystemExit(1) from None
            raise TrainingError(f"{error}. {path} names the photos of the batch and all losses") from None
        if self.device.type == "cuda" and progress.step > first:
            memory = {"peak_gib": torch.cuda.max_memory_allocated(self.device) / 2**30}
            self.recorder.scalars("memory", memory, step=progress.step, phase=phase.name)
        self.world.same_buffers(self.model)
        if self.world.size > 1:
            gc.collect()  # DistributedDataParallel refers to itself, and holds a copy of all gradients

    def _record(self, taken: list[Taken], first: int, phase: Phase) -> list[Taken]:
        """Show what steps were like, write some of them down, and return them; ``first`` were taken before the loop."""
        for each in taken:
            step = first + each.number + 1
            self.recorder.advance_bar(each.losses)
            if step % self.config.run.log_every == 0:
                # the trunks' group, or the only one, comes first
                rates = dict(zip(("lr", "lr_heads"), each.rates, strict=False))
                self.recorder.scalars("train", each.losses | rates, step=step, phase=phase.name)
        return taken

    def _stopped(self) -> bool:
        """Return whether this process or another one was told to stop."""
        if self.world.size == 1:
            return bool(self.interrupt.signal)
        told = torch.tensor(float(bool(self.interrupt.signal)), device=self.device)
        return bool(self.world.total(told).item())

    def _stop_if_told(self) -> None:
        """Leave here, where everything is saved, if this process or another one was told to stop."""
        if self._stopped():
            self._stop()

    def _stop(self) -> NoReturn:
        self.world.wait()  # or torchrun would end the first process while it writes
        raise Stop

    def _leave_validation(self) -> None:
        """Leave in the middle of a validation, which a run that is taken up from its last checkpoint repeats."""
        if self.world.size == 1 and (self.folder / "last.pt").exists():
            self._stop_if_told()

    def _dump(self, phase: Phase, error: NonFiniteError) -> Path:
        """Write down the batch whose loss or gradient was not finite."""
        records = self.data.splits[phase.config.photos].records
        index = self.world.interleave(error.index)
        content = {
            "phase": phase.name,
            "step": self.progress.step,
            "values": {name: str(value) for name, value in error.values.items()},
            "photos": [str(records[i].path or records[i].name) for i in index],
        }
        path = self.folder / DUMP
        if self.world.first:
            path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        self.world.wait()  # or torchrun would end the first process while it writes
        return path

    def _finish_epoch(self, phase: Phase, optimizer: torch.optim.Optimizer) -> None:
        """Save, validate, and remember the best. What follows the save is done again if the run is taken up from it."""
        progress, config = self.progress, phase.config
        self._save_last(optimizer)
        self._stop_if_told()
        progress.epoch += 1
        progress.total_epoch += 1
        progress.batch = 0
        items = self._validate(phase)
        if progress.best is None or better(items, progress.best, no_item_may_fall=config.kind == "ranking"):
            progress.best, progress.best_epoch, progress.stale = items, progress.epoch, 0
            if config.keep != "last":
                progress.best_weights = self._weights(phase)
        else:
            progress.stale += 1

    def _end(self, phase: Phase) -> bool:
        """Put the weights to keep in place and return whether they differ from those before the phase."""
        progress = self.progress
        if phase.config.keep != "last":
            assert progress.best_weights is not None
            self.model.load_state_dict(progress.best_weights, strict=False)
        changed = phase.config.keep != "if_better" or progress.best_epoch > 0
        verdict = (
            f"kept epoch {progress.best_epoch}" if phase.config.keep != "last" else "kept the last epoch"
        )
        self.recorder.say(f"{phase.name}: {verdict if changed else 'no epoch was better: nothing changed'}")
        self._save_best(phase)
        return changed

    def _validate(self, phase: Phase) -> dict[str, float]:
        """Measure the network on the validation photos and return the items that this phase is judged by."""
        progress, validation = self.progress, self.validation
        scales = max(progress.trained_scales, phase.scales_to_run(self.model.num_scales))
        taught = phase.config.kind == "apn_init"
        last = taught and scales == max(
            phase.scales
        )  # the region is proposed by the last scale that is trained
        predictions = validation.predict(scales, fused=progress.fusion_trained, propose=last)
        result = validation.report(predictions)
        items = phase_items(phase, result, validation.apn_loss(predictions, phase) if taught else None)
        figures = flat(result) | {f"judged_{k}": v for k, v in items.items()}
        self.recorder.scalars("val", figures, step=progress.step, phase=phase.name)
        self.recorder.say(f"{phase.name} epoch {progress.epoch}: {summary(result)}")
        for warning in collapse_warning(result["regions"], self.model.bounds):
            self.recorder.say(f"warning: {warning}")
        picture = validation.picture(predictions)
        if picture is not None:
            self.recorder.picture("val/regions", picture, step=progress.step)
        return items

    def _loader(self, phase: Phase, start_batch: int) -> Any:
        return train_loader(
            self.data,
            self.config.data,
            seed=self.config.run.seed,
            epoch=self.progress.total_epoch,
            start_batch=start_batch,
            photos=phase.config.photos,
            num_noise=phase.noise_per_photo(),
            rank=self.world.rank,
            num_ranks=self.world.size,
        )

    def _weights(self, phase: Phase) -> dict[str, Tensor]:
        """Return a copy of the weights that a phase can change."""
        prefixes = {
            "classification": ("backbones.", "classifiers."),
            "apn_init": ("apns.",),
            "ranking": ("apns.",),
            "fusion": ("fusion.",),
        }[phase.config.kind]
        state = self.model.state_dict()
        return {key: value.detach().cpu().clone() for key, value in state.items() if key.startswith(prefixes)}

    def _content(self) -> dict[str, Any]:
        return {
            "model": {key: value.cpu() for key, value in self.model.state_dict().items()},
            "config": dump_config(self.config),
            "dataset": self.data.dataset,
            "class_names": list(self.data.class_names),
            "val_names": list(self.data.val_names),
            "train_names": self.data.training_names(),
            "trained_scales": self.progress.trained_scales,
            "fusion_trained": self.progress.fusion_trained,
            "step": self.progress.step,
            "provenance": self._starts,
        }

    def _save_last(self, optimizer: torch.optim.Optimizer | None) -> None:
        if not self.world.first:
            return
        state = copy.deepcopy(optimizer.state_dict()) if optimizer is not None else None
        self.progress.log_length = self.recorder.length()
        progress = asdict(self.progress)
        content = self._content() | {"progress": progress, "optimizer": state}
        save_checkpoint(self.folder / "last.pt", content, previous=self.folder / "previous.pt")

    def _save_best(self, phase: Phase) -> None:
        """Write ``best.pt`` if this network is more complete than the best one so far, or as complete and better."""
        progress = self.progress
        scales = max(progress.trained_scales, 1)
        validation = self.validation
        result = validation.report(validation.predict(scales, fused=progress.fusion_trained))
        name = "fused" if "fused" in result["top1"] else "mean"
        key = [float(scales + progress.fusion_trained), result["top1"][name], result["log_prob"][name]]
        if not progress.best_key or key >= progress.best_key:
            progress.best_key = key
            if self.world.first:
                save_checkpoint(
                    self.folder / "best.pt", self._content() | {"val_report": result, "phase": phase.name}
                )
