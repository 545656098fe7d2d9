"""Fit: run the phases of a configuration on its data, keep the best network, go on where a run was stopped.

Everything random is a function of the seed and a counter: the order of the photos of (seed, epoch), their changes and
the jitter of their regions of (seed, epoch, photo), what a backbone draws of (seed, step). So a checkpoint needs no
random state, and a run that is stopped and resumed ends with the weights it would have had.
"""

from __future__ import annotations

import gc
import itertools
import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from racnn.config import Config
from racnn.data import train_loader
from racnn.engine.device import determinism
from racnn.engine.distributed import join, leave, own_device
from racnn.engine.files import write_text
from racnn.engine.folder import DUMP
from racnn.engine.loop import EpochState, NonFiniteError, StepMetrics, predict, train_one_epoch
from racnn.engine.progress import Progress
from racnn.engine.resume import restore_optimizer
from racnn.engine.run import Run
from racnn.engine.schedule import better, shown_items
from racnn.engine.signals import Stop
from racnn.engine.steps import build_optimizer, train_only
from racnn.engine.validation import flat, summary
from racnn.errors import TrainingError
from racnn.evaluation.diagnostics import collapse_warnings
from racnn.models.phase import Phase, upcoming

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
                Trainer(run).train()
                report = run.best_report()
            except Stop:
                number = run.interrupt.signal or signal.SIGTERM
                run.logger.log(
                    f"stopped by signal {number} after step {run.progress.step}; go on with --resume"
                )
                raise SystemExit(128 + number) from None
            finally:
                run.leave_folder()
    leave()
    return run.folder / "best.pt", report


class Trainer:
    """Takes a run through the phases that are left of its schedule."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self._micro_batch = 0  # smaller than the configuration's where the GPU turns out to be

    def train(self) -> None:
        """Run the phases that are left."""
        run, progress = self.run, self.run.progress
        if upcoming(run.config.schedule, run.config.model.num_scales, progress.outcomes) is None:
            run.logger.log("the run is finished: nothing is left to train")
        while (
            phase := upcoming(run.config.schedule, run.config.model.num_scales, run.progress.outcomes)
        ) is not None:
            changed = self._run_phase(phase)
            progress.outcomes.append(changed)
            progress.epoch = progress.batch = progress.stale = progress.best_epoch = 0
            progress.start = progress.best = progress.best_weights = None
            run.save_last(None)
            run.stop_if_told()

    def _run_phase(self, phase: Phase) -> bool:
        """Run one phase, or the rest of it, and return whether it changed the network."""
        run, progress = self.run, self.run.progress
        self._micro_batch = run.config.run.micro_batch  # phases need more or less memory
        context = _Context(run, phase, lambda: self._loader(phase, 0))
        phase.prepare(context)
        if progress.start is None:
            self._begin(phase, context)
        optimizer = build_optimizer(run.model, phase)
        if run.optimizer_state is not None:
            restore_optimizer(optimizer, run.optimizer_state)
            run.optimizer_state = None
        batches = len(self._loader(phase, 0))
        run.logger.start_bar(phase.name, phase.epochs * batches, progress.epoch * batches + progress.batch)
        while progress.epoch < phase.epochs and not (phase.patience and progress.stale >= phase.patience):
            self._run_epoch(phase, optimizer, batches)
            self._finish_epoch(phase, optimizer)
        run.logger.close_bar()
        context.detach()
        return self._end(phase)

    def _begin(self, phase: Phase, context: _Context) -> None:
        """Do what a phase does once, before its first step."""
        run, progress = self.run, self.run.progress
        phase.begin(context)
        progress.fusion_trained |= phase.trains_fusion
        progress.trained_scales = max(progress.trained_scales, phase.last_trained_scale())
        progress.start = {}
        if phase.keep == "if_better":
            progress.start = self._validate(phase)
            progress.best = progress.start
            progress.best_weights = trained_weights(run.model, phase)

    def _run_epoch(self, phase: Phase, optimizer: torch.optim.Optimizer, batches: int) -> None:
        run, progress = self.run, self.run.progress
        state = EpochState(
            device=run.device,
            seed=run.config.run.seed,
            step=progress.step,
            done=progress.epoch * batches + progress.batch,
            length=phase.epochs * batches,
            class_weights=run.class_weights,
            micro_batch=self._micro_batch,
            world=run.world,
            interrupt=run.interrupt,
        )
        train_only(run.model, phase)
        if run.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(run.device)
        loader = self._loader(phase, progress.batch)
        try:
            for step in train_one_epoch(run.model, loader, phase, optimizer, state):
                progress.batch += 1
                progress.step += 1
                self._log_step(step, state, phase)
                # several processes stop at the same step, all of them knowing
                stop = step.stop if run.world.size > 1 else bool(run.interrupt.signal)
                every = run.config.run.save_every
                due = stop or bool(every and progress.step % every == 0)
                if due and progress.batch < batches:  # _finish_epoch saves after the last one
                    run.save_last(optimizer)
                    if stop:
                        run.stop()
        except NonFiniteError as error:
            path = self._dump(phase, error)
            if not run.world.is_main_process:  # the first process says it
                raise SystemExit(1) from None
            raise TrainingError(f"{error}. {path} names the photos of the batch and all losses") from None
        finally:
            self._say(state)
        self._micro_batch = state.micro_batch
        if run.device.type == "cuda" and loader:
            memory = {"peak_gib": torch.cuda.max_memory_allocated(run.device) / 2**30}
            run.logger.scalars("memory", memory, step=progress.step, phase=phase.name)
        run.world.same_buffers(run.model)
        if run.world.size > 1:
            gc.collect()  # DistributedDataParallel refers to itself, and holds a copy of all gradients

    def _log_step(self, step: StepMetrics, state: EpochState, phase: Phase) -> None:
        """Show what a step was like, and write some of them down."""
        run = self.run
        self._say(state)
        run.logger.advance_bar(step.losses)
        if run.progress.step % run.config.run.log_every == 0:
            # the trunks' group, or the only one, comes first
            rates = dict(zip(("lr", "lr_heads"), step.rates, strict=False))
            run.logger.scalars("train", step.losses | rates, step=run.progress.step, phase=phase.name)

    def _say(self, state: EpochState) -> None:
        while state.messages:
            self.run.logger.log(state.messages.pop(0))

    def _dump(self, phase: Phase, error: NonFiniteError) -> Path:
        """Write down the batch whose loss or gradient was not finite."""
        run = self.run
        records = run.data.splits[phase.photos].records
        index = run.world.gather(error.index)
        content = {
            "phase": phase.name,
            "step": run.progress.step,
            "values": {name: str(value) for name, value in error.values.items()},
            "photos": [str(records[i].path or records[i].name) for i in index],
        }
        path = run.folder / DUMP
        if run.world.is_main_process:
            write_text(path, json.dumps(content, indent=2) + "\n")
        run.world.wait()  # or torchrun would end the first process while it writes
        return path

    def _finish_epoch(self, phase: Phase, optimizer: torch.optim.Optimizer) -> None:
        """Save, validate, and remember the best. What follows the save is done again if the run is taken up from it."""
        run, progress = self.run, self.run.progress
        run.save_last(optimizer)
        run.stop_if_told()
        progress.epoch += 1
        progress.total_epoch += 1
        progress.batch = 0
        items = self._validate(phase)
        if progress.best is None or better(items, progress.best, no_item_may_fall=phase.no_score_may_fall):
            progress.best, progress.best_epoch, progress.stale = items, progress.epoch, 0
            if phase.keep != "last":
                progress.best_weights = trained_weights(run.model, phase)
        else:
            progress.stale += 1

    def _end(self, phase: Phase) -> bool:
        """Put the weights to keep in place and return whether they differ from those before the phase."""
        run, progress = self.run, self.run.progress
        kept_last = phase.keep == "last"
        if not kept_last:
            assert progress.best_weights is not None
            run.model.load_state_dict(progress.best_weights, strict=False)
        changed = phase.keep != "if_better" or progress.best_epoch > 0
        run.logger.log(f"{phase.name}: {_outcome_of(phase, progress)}")
        run.save_best(phase.name)
        return changed

    def _validate(self, phase: Phase) -> dict[str, float]:
        """Measure the network on the validation photos and return the items that this phase is judged by."""
        run, progress, validation = self.run, self.run.progress, self.run.validation
        scales = max(progress.trained_scales, phase.num_scales_run(run.model.num_scales))
        propose = phase.proposes and scales == max(phase.scales)  # by the last scale that is trained
        predictions = validation.predict(scales, fused=progress.fusion_trained, propose=propose)
        result = validation.report(predictions)
        items = phase.scores(result, phase.validation_loss(run.model, predictions))
        figures = flat(result) | {f"judged_{k}": v for k, v in items.items()}
        run.logger.scalars("val", figures, step=progress.step, phase=phase.name)
        run.logger.log(f"{phase.name} epoch {progress.epoch}: {summary(result)}")
        for warning in collapse_warnings(result["regions"], run.model.bounds):
            run.logger.log(f"warning: {warning}")
        picture = validation.picture(predictions)
        if picture is not None:
            run.logger.picture("val/regions", picture, step=progress.step)
        return items

    def _loader(self, phase: Phase, start_batch: int) -> Any:
        run = self.run
        return train_loader(
            run.data,
            run.config.data,
            seed=run.config.run.seed,
            epoch=run.progress.total_epoch,
            start_batch=start_batch,
            photos=phase.photos,
            num_noise=phase.num_noise(),
            rank=run.world.rank,
            num_ranks=run.world.size,
        )


class _Context:
    """What a phase may use before its first step, see :class:`racnn.models.phase.PhaseContext`.

    Args:
        run: The run.
        phase: The phase.
        batches: Returns the phase's training batches, shuffled.
    """

    def __init__(self, run: Run, phase: Phase, batches: Callable[[], Any]) -> None:
        self.run = run
        self.phase = phase
        self.batches = batches
        self.model = run.model

    def read(self, what: str, split: str, call: Callable[..., Any], **settings: Any) -> Any:
        """Return what a call finds in the photos of a split, showing how far it is.

        Raises:
            Stop: The run was told to stop.
        """
        run = self.run

        def after_batch() -> None:
            run.logger.tick()
            if run.world.size == 1:  # several stop together, after the last batch
                self._stop_if_told()

        batches = run.validation.batches(split)
        run.logger.start_bar(f"{self.phase.name}: {what}, {split}", len(batches), 0)
        found = call(
            run.model,
            batches,
            self.phase.scales[0],
            self.phase,
            device=run.device,
            gather=run.world.gather,
            after_batch=after_batch,
            **settings,
        )
        run.logger.close_bar()
        self._stop_if_told()
        return found

    def _stop_if_told(self) -> None:
        """Stop with a checkpoint to go on from, if the run was told to."""
        if self.run.stopped():
            if not (self.run.folder / "last.pt").exists():
                self.run.save_last(None)
            self.run.stop()

    def attach(self, split: str, boxes: Tensor) -> None:
        """Let the photos of a split bring along a pseudo box each."""
        self.run.data.splits[split].pseudo_boxes = boxes.numpy()

    def detach(self) -> None:
        """Let no photo bring one along."""
        for photos in self.run.data.splits.values():
            photos.pseudo_boxes = None

    def descriptor_norms(self) -> list[float]:
        """Return the mean length of each scale's descriptors, from some training photos of all classes."""
        some = itertools.islice(self.batches(), NORM_BATCHES)  # shuffled
        return predict(self.model, some, device=self.run.device, world=self.run.world).norms

    def answers(self) -> tuple[list[Tensor], Tensor]:
        """Return the logits of every scale on the validation photos, and the labels."""
        predictions = self.run.validation.predict(self.model.num_scales, fused=False)
        return predictions.logits, predictions.labels

    def log(self, text: str) -> None:
        """Print a line."""
        self.run.logger.log(text)


def trained_weights(model: nn.Module, phase: Phase) -> dict[str, Tensor]:
    """Return a copy of the weights, and of batch norm's statistics, that a phase can change."""
    trunks, heads = phase.trained(model)
    own = {id(v) for module in (*trunks, *heads) for v in module.state_dict(keep_vars=True).values()}
    state = model.state_dict(keep_vars=True)
    return {key: value.detach().cpu().clone() for key, value in state.items() if id(value) in own}


def _outcome_of(phase: Phase, progress: Progress) -> str:
    """Return which epoch of a finished phase was kept, and by which figures."""
    if phase.keep == "last":
        return "kept the last epoch"
    before = f" ({shown_items(progress.start)} before)" if progress.start else ""
    if phase.keep == "if_better" and not progress.best_epoch:
        return f"no epoch was better, nothing changed{before}"
    assert progress.best is not None
    return f"kept epoch {progress.best_epoch}: {shown_items(progress.best)}{before}"
