"""The two loops: one epoch of training, one pass of evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from racnn.data import Data
from racnn.engine.distributed import ALONE, World
from racnn.engine.parts import Parts
from racnn.engine.phases import Phase
from racnn.engine.readings import Readings
from racnn.engine.steps import STEPS, Batch
from racnn.errors import ConfigError, TrainingError
from racnn.evaluation.report import evaluation_report
from racnn.models import RACNN


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Return the batch on a device; photos travel as uint8."""
    return {key: value.to(device, non_blocking=True) for key, value in batch.items()}


def train_one_epoch(
    model: RACNN,
    batches: Iterable[Batch],
    *,
    phase: Phase,
    optimizer: torch.optim.Optimizer,
    device: torch.device,
    class_weights: Tensor | None = None,
    micro_batch: int = 0,
    world: World = ALONE,
    say: Callable[[str], None] = print,
    stop: Callable[[], bool] = lambda: False,
    before_step: Callable[[], None],
    after_step: Callable[[Readings], None],
) -> int:
    """Take one optimizer step per batch.

    A batch that the GPU has no memory for is taken in halves, and so are those after it: the gradient is the same but for
    rounding, and for batch norm, which sees only a part at a time.

    Args:
        model: Already frozen but for what the phase trains.
        batches: Of the epoch, or of what is left of it.
        phase: Chooses the step function.
        optimizer: Over what the phase trains.
        device: Where the network is.
        class_weights: [C] on the device, or None.
        micro_batch: So many photos of a batch at a time; 0: all.
        world: The processes that share the batches.
        say: Told when a batch has to be taken in smaller parts.
        stop: Whether this process was told to stop; asked at each step, the answer is passed on.
        before_step: Called before each step, and before it is tried again: sets the random state and the learning rate.
        after_step: Called after each step with what can be read of the steps so far. It may raise to stop.

    Returns:
        ``micro_batch``, or the smaller part that the GPU had room for.

    Raises:
        NonFiniteError: A loss or gradient is not finite; the weights are those before the step.
        TrainingError: There is no memory for a single photo.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    step = _joined_step(Step(model, phase, class_weights), device, world)
    readings = Readings(phase.name, late=device.type == "cuda")
    asked = micro_batch
    for batch in batches:
        num = len(batch["label"])
        while True:
            before_step()
            optimizer.zero_grad(set_to_none=True)
            parts = _parts(num, micro_batch or num, join=micro_batch == asked)
            losses = _add_gradients(step, batch, device, parts, world)
            if losses is not None:
                break
            micro_batch = _halved(min(micro_batch or num, num), phase, say)
        largest = phase.config.clip_grad or float("inf")
        norm = torch.nn.utils.clip_grad_norm_(parameters, largest).float().reshape(1)
        told = norm.new_full((1,), float(stop()))
        sums = world.total(torch.cat([torch.stack(list(losses.values())), told]))
        values = torch.cat([sums[:-1], norm, sums[-1:]])
        readings.send([*losses, "grad_norm"], values, batch["index"], optimizer)
        optimizer.step()
        after_step(readings)
    return micro_batch


class Step(nn.Module):
    """The step of a phase as a module over the network, from a batch to its losses."""

    def __init__(self, model: RACNN, phase: Phase, class_weights: Tensor | None) -> None:
        super().__init__()
        self.model = model
        self.phase = phase
        self.class_weights = class_weights

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        losses: dict[str, Tensor] = STEPS[self.phase.config.kind](
            self.model, batch, self.phase, self.class_weights
        )
        return losses


def _joined_step(step: Step, device: torch.device, world: World) -> nn.Module:
    """Return the step; of several processes the one that averages the gradients over them."""
    if world.size == 1:
        return step
    if device.type == "cuda":
        return DistributedDataParallel(step, [device.index], gradient_as_bucket_view=True)
    # DDP sorts its buckets anew after the first step, and with them the order in which three or more processes add up: a
    # run that goes on in the middle of an epoch would get other bits. It does not where it looks for unused parameters;
    # torch warns once that this takes time.
    return DistributedDataParallel(step, gradient_as_bucket_view=True, find_unused_parameters=True)


def _add_gradients(
    step: nn.Module, batch: Batch, device: torch.device, parts: Sequence[tuple[int, int]], world: World
) -> dict[str, Tensor] | None:
    """Add up the gradients of a batch, part by part.

    Returns:
        The losses of this process's share of the batch; None where the GPU is too small.
    """
    losses: dict[str, Tensor] = {}
    try:
        for start, end in parts:
            part = {key: value[start:end] for key, value in batch.items()}
            share = float(part["share"].sum())
            last = end == parts[-1][1]
            apart = isinstance(step, DistributedDataParallel) and not last
            with step.no_sync() if apart else nullcontext():  # type: ignore[operator]
                terms = step(to_device(part, device))
                # the average over processes makes it their sum
                (world.size * share * terms["loss"]).backward()
            for name, value in terms.items():
                losses[name] = losses.get(name, 0.0) + share * value.detach().float()
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise ConfigError(
            "model.backbone: its batch norm needs more than one number a channel, and of a single photo this view leaves one; set "
            "data.batch_size and run.micro_batch so that every process has at least 2 photos of each batch, the last one too, or "
            "larger model.view_sizes"
        ) from None
    except torch.OutOfMemoryError:
        if world.size > 1:  # the others are waiting for this process's gradients
            raise TrainingError(
                "a GPU has not enough memory for its share of the batch; set run.micro_batch, or a smaller data.batch_size"
            ) from None
        return None
    return losses


def _parts(num: int, size: int, *, join: bool = False) -> list[tuple[int, int]]:
    """Return where the parts of a batch begin and end: ``size`` photos each, and the rest.

    Where the rest would be a single photo, see :func:`racnn.data.loader.num_left_over`, all parts are as equal as can be;
    of parts of two the last one then has three, if ``join`` allows it.
    """
    ends = [*range(size, num, size), num]
    if num % size == 1 and num > size > 2:
        ends = [num * (i + 1) // len(ends) for i in range(len(ends))]
    elif num % size == 1 and num > size == 2 and join:
        del ends[-2]
    return list(pairwise([0, *ends]))


def _halved(size: int, phase: Phase, say: Callable[[str], None]) -> int:
    """Return the next smaller part of a batch to try."""
    if size == 1:
        raise TrainingError(
            f"phase {phase.name}: the GPU has not enough memory for a single photo; "
            "take smaller model.view_sizes or a smaller backbone, or run.precision=bf16"
        )
    torch.cuda.empty_cache()
    half = (size + 1) // 2
    say(f"{phase.name}: the GPU has no memory for {size} photos at a time; going on with {half}")
    return half


@dataclass
class Predictions:
    """What a network said of every photo of a split, on the CPU; lists hold one entry a scale or region.

    ``lessons`` are the boxes that its photos brought along for an APN to learn, [N, 4], or None.
    """

    logits: list[Tensor]
    fused: Tensor | None
    labels: Tensor
    regions: list[Tensor]
    places: list[Tensor]
    boxes: Tensor
    parts: Tensor
    norms: list[float]
    lessons: Tensor | None = None


@torch.no_grad()
def predict(
    model: RACNN,
    batches: Iterable[Batch],
    *,
    device: torch.device,
    scales: int | None = None,
    propose: bool = False,
    fused: bool = True,
    world: World = ALONE,
    after_batch: Callable[[], None] = lambda: None,
) -> Predictions:
    """Run the network over batches without random changes. What the GPU has no memory for is taken in halves.

    Args:
        model: Put into evaluation mode.
        batches: From :func:`racnn.data.eval_loader`.
        device: Where the network is.
        scales: Run only so many; None runs all.
        propose: Keep also the region that the last of them proposes.
        fused: Keep the fusion layer's logits where all scales are run.
        world: The processes that share the batches; all of them return the predictions of all photos.
        after_batch: Called after each batch; it may raise to stop.

    Raises:
        TrainingError: An answer is not finite, or there is no memory for a single photo.
    """
    model.eval()

    def answers(batch: Batch) -> dict[str, Any]:
        output = model(batch["image"].to(device, non_blocking=True), scales=scales, propose=propose)
        if not all(logits.isfinite().all() for logits in output.logits):
            raise TrainingError("the network gives answers that are not finite: its training has diverged")
        return {
            "logits": [x.float().cpu() for x in output.logits],
            "fused": output.fused.float().cpu() if fused and output.fused is not None else None,
            "regions": [x.cpu() for x in output.regions],
            "places": [x.cpu() for x in output.places],
            "norms": [x.norm(dim=1).cpu() for x in output.descriptors],
            **{key: batch.get(key) for key in ("label", "box", "parts", "lesson")},
        }

    parts, rows = Parts(), []
    for batch in batches:
        rows.append(_joined(parts.run(answers, batch)))
        after_batch()
    every = _joined(world.interleave(rows))
    return Predictions(
        logits=every["logits"],
        fused=every["fused"],
        labels=every["label"],
        regions=every["regions"],
        places=every["places"],
        boxes=every["box"],
        parts=every["parts"],
        norms=[norm.mean().item() for norm in every["norms"]],
        lessons=every["lesson"],
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
        dataset=data.dataset,
        split=split,
        class_names=data.class_names,
        logits={f"scale_{s}": logits for s, logits in enumerate(predictions.logits, start=1)},
        fused=predictions.fused,
        labels=predictions.labels,
        regions=predictions.regions,
        composed=predictions.places[1:],
        bounds=list(bounds)[: len(predictions.regions)],
        boxes=predictions.boxes,
        parts=predictions.parts,
        focus_parts=data.focus_parts,
    )
    return measured | {"num_skipped": len(data.skipped)}
