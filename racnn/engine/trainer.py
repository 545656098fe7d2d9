"""Training: run the phases of a configuration, keep the best network, go on where a run was stopped.

Everything random is a function of the seed and a counter: the order of the photos of (seed, epoch), their changes and
the jitter of their regions of (seed, epoch, photo), what a backbone draws of (seed, step). So a checkpoint needs no
random state, and a run that is stopped and resumed ends with the weights it would have had.
"""

from __future__ import annotations

import gc
import signal
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NoReturn, cast

import torch
from torch import Tensor, nn

from racnn.config import Config, dump_config
from racnn.data import build_data, eval_loader, mix_seed, train_loader
from racnn.data.statistics import refuse_misplaced_boxes
from racnn.data.taxonomy import read_levels
from racnn.durations import format_duration
from racnn.engine.checkpoint import (
    Content,
    Progress,
    digest,
    open_checkpoint,
    restore_optimizer,
    save_checkpoint,
    write_text,
)
from racnn.engine.device import determinism, prepare
from racnn.engine.distributed import ALONE, ProcessGroup, join, leave, own_device
from racnn.engine.evaluator import (
    Context,
    figures,
    outcome_of,
    predict,
    preview,
    report,
    summary,
)
from racnn.engine.logger import Logger, Silence
from racnn.engine.loop import EpochState, NonFiniteError, build_optimizer, train_one_epoch, train_only
from racnn.engine.run_dir import RunDir, provenance, refuse_output_among_classes, remove_files, with_start
from racnn.engine.signals import Interrupt
from racnn.errors import CheckpointError, ConfigError, DataError, TrainingError
from racnn.evaluation.charts import as_file, curves, read_log, results_table
from racnn.evaluation.diagnostics import collapse_warnings, describe_data
from racnn.evaluation.report import Predictions
from racnn.models import build_model
from racnn.models.early_exit import answers_by_depth, outcome, stored_early_exit
from racnn.models.phase import FittedPhase, GradientPhase, Phase, upcoming


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
    processes = join(device)
    with determinism(config.run.deterministic, device):
        trainer = Trainer(config, device=device, processes=processes, resume=resume, overwrite=overwrite)
        with trainer.interrupt:
            try:
                trainer.train()
                best = trainer.best_report()
            except DataError as error:  # a photo that was there when the run began
                raise DataError(f"{error}{trainer.way_on()}") from None
            finally:
                trainer.close()
    leave()
    return trainer.folder / "best.pt", best


class Trainer:
    """A run: its network, data, progress and folder, made anew or taken up, and the way through its phases.

    Arguments and errors are those of :func:`fit`; ``processes`` are the processes that train together.
    """

    def __init__(
        self,
        config: Config,
        *,
        device: torch.device,
        processes: ProcessGroup = ALONE,
        resume: bool = False,
        overwrite: bool = False,
    ) -> None:
        self.config = config
        self.device = device
        self.processes = processes
        self.folder = Path(config.run.out)
        self.interrupt = Interrupt()
        self.progress = Progress()
        self.optimizer_state: dict[str, Any] | None = None  # of a phase that is taken up in its middle
        self.logger = cast(Logger, Silence())
        self._run_dir = RunDir(self.folder)
        self._validated: tuple[int, Predictions] | None = None  # by the network as it is, with so many scales
        self._told: dict[str, Any] | None = None  # the last report that was shown
        self._losses: list[
            float
        ] = []  # of the steps of this epoch, as far as they were taken by this process
        self._epoch_began = 0.0
        self._micro_batch = 0  # smaller than the configuration's where the GPU turns out to be
        processes.from_main_process(lambda: refuse_output_among_classes(config))
        restarted = processes.restarted()

        def open_folder() -> Content | None:
            stored = self._run_dir.open(
                config, processes, resume=resume, overwrite=overwrite, restarted=restarted
            )
            return stored.content if stored else None

        if processes.size > 1:
            _refuse_for_several(config)
        try:
            self._build(processes.from_main_process(open_folder))
        except BaseException:
            self.close()
            raise

    def _build(self, content: Content | None) -> None:
        """Make or take up the data and the network; enter the folder last, when all that can fail has not."""
        with self.processes.main_process_first():  # a mistake is told once
            self._load_data(content)
            self._build_model(content)
            main = self.processes.is_main_process
            self.data.use_cache(print if main else lambda _: None)  # a disk may be full
            lines = self._remarks() if main else []
        self.processes.wait()  # an earlier run is deleted only when all have come so far
        start = provenance(self.config, self.data, self.device, self.progress.step, self.processes)
        self._starts = with_start(content.provenance if content else [], start)
        self.processes.from_main_process(lambda: self._enter_folder(new=content is None))
        for line in lines:
            self.logger.log(line)

    def _remarks(self) -> list[str]:
        """Return what a user should know of the data and the network before the first step."""
        steps = bool(self.config.steps_by_key())
        notes = [backbone.note for backbone in self.model.backbones if getattr(backbone, "note", "")]
        return describe_data(self.data, self.config.data, self.device, steps=steps) + notes

    def _load_data(self, content: Content | None) -> None:
        """Read the data set, split as the checkpoint has it, and refuse to go on with other photos."""
        config = self.config
        self.data = build_data(
            config.data,
            seed=config.run.seed,
            val_names=content.val_names if content else None,
            class_names=content.class_names if content else None,
        )
        self.levels = None
        if config.data.levels is not None:  # mistakes show before training
            self.levels = read_levels(config.data.levels, self.data.class_names, config.data)
        if self.processes.is_main_process:
            refuse_misplaced_boxes(self.data)
            self._run_dir.read_photos(self.data, again=content is not None)
        if content:
            self._run_dir.refuse_other_photos(content, self.data, config.data.batch_size)
        balanced = config.data.balance == "weights"
        self.class_weights = self.data.class_weights().to(self.device) if balanced else None

    def _build_model(self, content: Content | None) -> None:
        """Make the network, filled and with its progress from the checkpoint, on the device."""
        config, device = self.config, self.device
        torch.manual_seed(config.run.seed)
        self.model = build_model(
            config.model, num_classes=len(self.data.class_names), weights=content is None
        )
        if content:
            assert content.progress is not None
            self.model.load_state_dict(content.model)
            self.progress, self.optimizer_state = content.progress, content.optimizer
        elif self.levels is not None and hasattr(self.model, "take_levels"):
            self.model.take_levels(self.levels.names, self.levels.groups)
        phases = [phase.resolved(config.model.num_scales) for phase in config.phases()]
        self.model.check_views([pair for phase in phases for pair in phase.enlargements()])
        prepare(self.model, config, device)

    def _enter_folder(self, *, new: bool) -> None:
        resolved = self._run_dir.enter(self.config, self._starts, new=new)
        self.logger = Logger(self.folder, step=self.progress.step, length=self.progress.log_length)
        self.logger.text("config", f"```yaml\n{resolved}\n```")

    def close(self) -> None:
        """Stop recording, and let other processes use the folder."""
        self.logger.close()
        self._run_dir.leave(self.progress.step)

    def way_on(self) -> str:
        """Return how a run that had to stop can go on, as the end of a message; nothing where nothing is kept."""
        if not (self.folder / "last.pt").exists():
            return ""
        return (
            f"\nthe run so far is in {self.folder}: once all photos can be read again, go on with --resume; without some of them, "
            "start anew with --overwrite"
        )

    # --- the phases

    def train(self) -> None:
        """Run the phases that are left."""
        config, progress = self.config, self.progress
        schedule, num_scales = config.schedule, config.model.num_scales
        if upcoming(schedule, num_scales, progress.outcomes) is None:
            self.logger.log("the run is finished: nothing is left to train")
        while (phase := upcoming(schedule, num_scales, progress.outcomes)) is not None:
            changed = self._run_phase(phase)
            progress.outcomes.append(changed)
            progress.epoch = progress.batch = progress.stale = progress.best_epoch = 0
            progress.start = progress.best = progress.best_weights = None
            progress.state = {}
            self.save_last(None)
            following = upcoming(schedule, num_scales, progress.outcomes)
            if following is None or not phase.stores or following.stores != phase.stores:
                self.processes.from_main_process(lambda: remove_files(self.folder / "views"))
            self.stop_if_told()

    def _run_phase(self, phase: Phase) -> bool:
        """Run one phase, or the rest of it, and return whether it changed the network."""
        progress = self.progress
        self._micro_batch = self.config.run.micro_batch  # phases need more or less memory
        context = Context(self, phase)
        phase.prepare(context)
        if progress.start is None:
            self._begin(phase, context)
        if isinstance(phase, GradientPhase):
            phase.take_up(context, progress.state)
        optimizer = build_optimizer(self.model, phase) if isinstance(phase, GradientPhase) else None
        if self.optimizer_state is not None:
            assert optimizer is not None
            restore_optimizer(optimizer, self.optimizer_state)
            self.optimizer_state = None
        epochs, batches = phase.num_epochs(), len(self.train_batches(phase))
        while progress.epoch < epochs and not phase.gives_up(progress.stale):
            self._validated = None
            self.logger.start_bar(phase.name, epochs * batches, progress.epoch * batches + progress.batch)
            if isinstance(phase, FittedPhase):
                self._fit(phase, context)
            elif isinstance(phase, GradientPhase) and optimizer is not None:
                self._run_epoch(phase, optimizer, batches)
            self._finish_epoch(phase, optimizer, context)
        self.logger.close_bar()
        context.detach()
        return self._end(phase, context)

    def _begin(self, phase: Phase, context: Context) -> None:
        """Do what a phase does once, before its first step."""
        progress = self.progress
        phase.begin(context)
        self._validated = None
        progress.fusion_trained |= phase.trains_fusion and self.model.num_scales > 1
        progress.trained_scales = max(progress.trained_scales, phase.last_trained_scale())
        start: dict[str, float] = {}
        if phase.keep == "if_better":
            start = self._validate(phase)
            progress.best, progress.best_weights = start, trained_weights(self.model, phase)
        if isinstance(phase, GradientPhase):  # which may stop: the phase has begun only when it has returned
            progress.state = phase.between_epochs(context, {})
        progress.start = start

    def _run_epoch(self, phase: GradientPhase, optimizer: torch.optim.Optimizer, batches: int) -> None:
        """Take the steps of an epoch, or of what is left of it; save on the way, and stop there if told to."""
        progress = self.progress
        state = EpochState(
            device=self.device,
            seed=self.config.run.seed,
            step=progress.step,
            done=progress.epoch * batches + progress.batch,
            length=phase.epochs * batches,
            class_weights=self.class_weights,
            micro_batch=self._micro_batch,
            processes=self.processes,
            interrupt=self.interrupt,
        )
        train_only(self.model, phase)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        loader = self.train_batches(phase, start=progress.batch)
        every = self.config.run.save_every
        try:
            self._losses, self._epoch_began = [], time.monotonic()
            for step in train_one_epoch(self.model, loader, phase, optimizer, state):
                self._losses.append(step.losses["loss"])
                progress.batch += 1
                progress.step += 1
                self._say(state)
                self._log_step(step.losses, step.rates, phase)
                # several processes stop at the same step, all of them knowing
                stop = step.stop if self.processes.size > 1 else bool(self.interrupt.signal)
                due = stop or bool(every and progress.step % every == 0)
                if due and progress.batch < batches:  # _finish_epoch saves after the last one
                    self.save_last(optimizer)
                    if stop:
                        self.stop()
        except NonFiniteError as error:
            records, index = self.data.splits[phase.photos].records, self.processes.gather(error.index)
            path = self._run_dir.dump(
                phase.name, progress.step, error.values, [records[i] for i in index], self.processes
            )
            if not self.processes.is_main_process:  # which says it
                raise SystemExit(1) from None
            raise TrainingError(f"{error}. {path} names the photos of the batch and all losses") from None
        finally:
            self._say(state)
        self._micro_batch = state.micro_batch
        if self.device.type == "cuda" and loader:
            memory = {"peak_gib": torch.cuda.max_memory_allocated(self.device) / 2**30}
            self.logger.scalars("memory", memory, step=progress.step, phase=phase.name)
        self.processes.same_buffers(self.model)
        if self.processes.size > 1:
            gc.collect()  # DistributedDataParallel refers to itself, and holds a copy of all gradients

    def _fit(self, phase: FittedPhase, context: Context) -> None:
        """Let a phase fit its modules; not again where the run is taken up between that and its validation."""
        if not self.progress.batch:
            self.save_last(None)  # where even a killed run goes on from
            train_only(self.model, phase)
            torch.manual_seed(mix_seed(self.config.run.seed, self.progress.step) >> 1)
            phase.fit(context)
            self.progress.batch = 1

    def _log_step(self, losses: Mapping[str, float], rates: list[float], phase: Phase) -> None:
        """Show what a step was like, and write some of them down."""
        self.logger.advance_bar(losses)
        if self.progress.step % self.config.run.log_every == 0:
            # the trunks' group, or the only one, comes first
            named = dict(zip(("lr", "lr_heads"), rates, strict=False))
            self.logger.scalars("train", {**losses, **named}, step=self.progress.step, phase=phase.name)

    def _say(self, state: EpochState) -> None:
        while state.messages:
            self.logger.log(state.messages.pop(0))

    def _finish_epoch(self, phase: Phase, optimizer: torch.optim.Optimizer | None, context: Context) -> None:
        """Save, validate, and remember the best. What follows the save is done again if the run is taken up from it."""
        progress = self.progress
        self.save_last(optimizer)
        self.stop_if_told()
        if isinstance(phase, GradientPhase):
            progress.state = phase.between_epochs(context, progress.state)
            phase.take_up(context, progress.state)
        progress.epoch += 1
        progress.total_epoch += 1
        progress.batch = 0
        scores = self._validate(phase)
        if progress.best is None or better(scores, progress.best, none_may_fall=phase.no_score_may_fall):
            progress.best, progress.best_epoch, progress.stale = scores, progress.epoch, 0
            if phase.keep != "last":
                progress.best_weights = trained_weights(self.model, phase)
        else:
            progress.stale += 1

    def _end(self, phase: Phase, context: Context) -> bool:
        """Put the weights to keep in place and return whether they differ from those after :meth:`_begin`."""
        progress = self.progress
        if phase.keep != "last":
            assert progress.best_weights is not None
            self.model.load_state_dict(progress.best_weights, strict=False)
            self._validated = None
        if isinstance(phase, GradientPhase) or phase.keep != "last":
            self.logger.log(f"{phase.name}: {outcome_of(phase, progress)}")
        kept = phase.keep != "if_better" or progress.best_epoch > 0
        if kept and isinstance(phase, GradientPhase):
            phase.finish(context)
            self._validated = None
        self.save_best(phase.name, better=kept and isinstance(phase, GradientPhase) and phase.replaces_best)
        return kept

    # --- validation

    def predict(self, num_scales: int, *, fused: bool, propose: bool = False) -> Predictions:
        """Return what the network answers on the validation photos, see :func:`racnn.engine.evaluator.predict`.

        The network as it is answers once; what it proposes by the last scale is asked for anew.
        """
        if self._validated is not None and self._validated[0] == num_scales and not propose:
            found = self._validated[1]
            return found if fused else replace(found, fused=None)
        found = predict(
            self.model,
            self.eval_batches("val"),
            device=self.device,
            num_scales=num_scales,
            propose=propose,
            processes=self.processes,
            after_batch=self._stop_in_validation,
        )
        self._validated = None if propose else (num_scales, found)
        return found if fused else replace(found, fused=None)

    def measure(self, predictions: Predictions) -> dict[str, Any]:
        """Return the report on predictions of the validation photos."""
        return report(predictions, data=self.data, split="val", bounds=self.model.bounds)

    def _validate(self, phase: Phase) -> dict[str, float]:
        """Measure the network on the validation photos and return the scores that this phase is judged by."""
        progress, logger = self.progress, self.logger
        scales = max(progress.trained_scales, phase.num_scales_run(self.model.num_scales))
        propose = phase.proposes and scales == max(phase.scales)  # by the last scale that is trained
        predictions = self.predict(scales, fused=progress.fusion_trained, propose=propose)
        result = self.measure(predictions)
        scores = phase.scores(result, phase.validation_loss(self.model, predictions))
        judged = {f"judged_{name}": value for name, value in scores.items()}
        logger.scalars("val", figures(result) | judged, step=progress.step, phase=phase.name)
        logger.log(f"{phase.name}{self._epoch_in_words(phase)}: {summary(result, self._told)}")
        self._told = result
        if self.processes.is_main_process:
            rows = read_log(self.folder)
            write_text(self.folder / "results.csv", results_table(rows))
            if drawn := curves(rows):
                write_text(self.folder / "curves.svg", as_file(drawn))
        steps = isinstance(phase, GradientPhase) and phase.augments
        for warning in collapse_warnings(result["regions"], self.model.bounds, steps=steps):
            logger.log(f"warning: {warning}")
        if self.config.run.num_preview and predictions.proposals and self.processes.is_main_process:
            picture = preview(predictions, self.data.splits["val"], self.config, self.model)
            logger.picture("val/regions", picture, step=progress.step)
        return scores

    def _epoch_in_words(self, phase: Phase) -> str:
        """Return which epoch of a phase has ended, with its mean loss and how long it took."""
        if not isinstance(phase, GradientPhase):
            return ""
        words = f" epoch {self.progress.epoch}/{phase.epochs}"
        if self._losses and self.progress.epoch:
            mean = sum(self._losses) / len(self._losses)
            words += f": loss {mean:.3f}, {format_duration(time.monotonic() - self._epoch_began)}"
        return words

    def _early_exit(self, predictions: Predictions) -> dict[str, Any]:
        """Return what the choice of when to stop looking makes of validation photos, if it was made for this network."""
        chosen = stored_early_exit(
            self.progress.early_exit, digest(self.model.state_dict()), path=self.folder / "last.pt"
        )
        if chosen is None:
            return {}
        answers = answers_by_depth(predictions.logits, predictions.fused, chosen.pools)
        made = outcome(answers, predictions.labels, chosen.threshold, chosen.costs, chosen.later)
        return {"early_exit": asdict(made)}

    def best_report(self) -> dict[str, Any]:
        """Return the validation report of ``best.pt``."""
        path = self.folder / "best.pt"
        found = self.processes.from_main_process(lambda: open_checkpoint(path).content.val_report)
        if found is None:
            raise CheckpointError(f"{path}: holds no report on the validation photos, so it is no best.pt")
        return found

    # --- photos

    def train_batches(self, phase: Phase, start: int = 0) -> Any:
        """Return the phase's training batches of this epoch, shuffled, from one on."""
        return train_loader(
            self.data,
            self.config.data,
            seed=self.config.run.seed,
            epoch=self.progress.total_epoch,
            start_batch=start,
            photos=phase.photos,
            num_noise=phase.num_noise(),
            passes=getattr(phase, "passes", 1),
            rank=self.processes.rank,
            num_ranks=self.processes.size,
        )

    def eval_batches(self, split: str, *, most: int | None = None) -> Any:
        """Return this process's photos of a split, or so many of them, unchanged and in order."""
        processes = self.processes
        return eval_loader(
            self.data.splits[split],
            self.config.data,
            most=most,
            rank=processes.rank,
            num_ranks=processes.size,
        )

    def photo_digests(self) -> dict[str, str]:
        """Return by name what the photos hold, as far as that was read."""
        return self._run_dir.digests()

    # --- stopping and saving

    def stopped(self) -> bool:
        """Return whether this process or another one was told to stop."""
        if self.processes.size == 1:
            return bool(self.interrupt.signal)
        told = torch.tensor(float(bool(self.interrupt.signal)), device=self.device)
        return bool(self.processes.total(told).item())

    def stop_if_told(self) -> None:
        """Leave here, where everything is saved, if this process or another one was told to stop."""
        if self.stopped():
            self.stop()

    def stop(self) -> NoReturn:
        """Leave here, where everything is saved, together with the other processes."""
        self.processes.wait()  # or torchrun would end the first process while it writes
        number = self.interrupt.signal or signal.SIGTERM
        self.logger.log(f"stopped by signal {number} after step {self.progress.step}; go on with --resume")
        raise SystemExit(128 + number)

    def _stop_in_validation(self) -> None:
        """Leave in the middle of a validation, which a run that is taken up from its last checkpoint repeats."""
        if self.processes.size == 1 and (self.folder / "last.pt").exists():
            self.stop_if_told()

    def _content(self) -> dict[str, Any]:
        data, found = self.data, self._run_dir.digests()
        return {
            "model": {key: value.cpu() for key, value in self.model.state_dict().items()},
            "config": dump_config(self.config),
            "dataset": data.dataset,
            "class_names": list(data.class_names),
            "val_names": list(data.val_names),
            "train_names": data.training_names(),
            "train_digests": [found[name] for name in data.training_names() if name in found],
            "val_digests": [found[name] for name in data.val_names if name in found],
            "trained_scales": self.progress.trained_scales,
            "fusion_trained": self.progress.fusion_trained,
            "early_exit": self.progress.early_exit,
            "step": self.progress.step,
            "provenance": self._starts,
        }

    def save_last(self, optimizer: torch.optim.Optimizer | None) -> None:
        """Write ``last.pt``, with the state of the optimizer in the middle of a phase, and keep the one before."""
        if not self.processes.is_main_process:
            return
        self.progress.log_length = self.logger.length()
        content = self._content() | {
            "progress": dict(vars(self.progress)),
            "optimizer": None if optimizer is None else optimizer.state_dict(),
        }
        save_checkpoint(self.folder / "last.pt", content, previous=self.folder / "previous.pt")

    def save_best(self, phase_name: str, *, better: bool = False) -> None:
        """Write ``best.pt`` if this network is more complete than the best one so far, or as complete and better.

        Args:
            phase_name: Name of the phase that has ended.
            better: Whether the phase itself has found it better than the one before, by a finer measure.
        """
        progress = self.progress
        scales = max(progress.trained_scales, 1)
        predictions = self.predict(scales, fused=progress.fusion_trained)
        result = self.measure(predictions) | self._early_exit(predictions)
        name = "fused" if "fused" in result["top1"] else "mean"
        key = [float(scales + progress.fusion_trained), result["top1"][name], result["log_prob"][name]]
        if not progress.best_key or key >= progress.best_key or (better and key[0] == progress.best_key[0]):
            progress.best_key = key
            if self.processes.is_main_process:
                save_checkpoint(
                    self.folder / "best.pt", self._content() | {"val_report": result, "phase": phase_name}
                )


def _refuse_for_several(config: Config) -> None:
    """Refuse phases that several processes cannot share.

    Raises:
        ConfigError: There is one.
    """
    for key, phase in config.phases_by_key().items():
        if phase.needs_one_process:
            raise ConfigError(f"{key}: a {phase.kind} phase runs in one process; start it without torchrun")


def trained_weights(model: nn.Module, phase: Phase) -> dict[str, Tensor]:
    """Return a copy of the weights, and of batch norm's statistics, that a phase can change."""
    trunks, heads = phase.trained(model)
    changed = (*trunks, *heads, *phase.fitted(model))
    own = {id(v) for module in changed for v in module.state_dict(keep_vars=True).values()}
    state = model.state_dict(keep_vars=True)
    return {key: value.detach().cpu().clone() for key, value in state.items() if id(value) in own}


def better(new: Mapping[str, float], old: Mapping[str, float], *, none_may_fall: bool) -> bool:
    """Return whether the mean of the scores rose and, if asked, none of them fell."""
    if none_may_fall and any(new[name] < old[name] for name in old):
        return False
    return sum(new.values()) > sum(old.values())
