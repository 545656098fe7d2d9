"""One epoch of training: a generator that takes an optimizer step per batch and yields its metrics."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from racnn.data import mix_seed
from racnn.engine.distributed import ALONE, ProcessGroup
from racnn.engine.signals import Interrupt
from racnn.errors import ConfigError, TrainingError
from racnn.models.parts import halved
from racnn.models.phase import Batch, GradientPhase, Phase


class NonFiniteError(TrainingError):
    """A loss or gradient is not finite.

    Attributes:
        values: The losses and ``grad_norm`` by name, those that are finite too.
        index: Positions of the batch's photos in their split.
    """

    def __init__(self, phase: str, values: dict[str, float], index: list[int]) -> None:
        shown = ", ".join(f"{name} = {value}" for name, value in values.items() if not math.isfinite(value))
        super().__init__(
            f"phase {phase}: {shown} is not finite; stopped before the optimizer step. "
            "Try a smaller learning rate, clip_grad, or run.precision=fp32"
        )
        self.values = values
        self.index = index


@dataclass
class EpochState:
    """What the steps of an epoch need to know, and what they change.

    Attributes:
        device: Where the network is.
        seed: Seed of the run; step s draws from (seed, s).
        step: Optimizer steps of the whole run.
        done: Optimizer steps of the phase, of ``length`` in all; they pace the learning rate.
        length: Optimizer steps of the phase.
        class_weights: [C] on the device, or None.
        micro_batch: Photos of a batch on the device at a time; 0: all. Halved where the GPU has no memory for more.
        processes: The processes that share the batches.
        interrupt: Tells whether this process was asked to stop; None: it never is.
        messages: Lines for the log.
    """

    device: torch.device
    seed: int = 0
    step: int = 0
    done: int = 0
    length: int = 1
    class_weights: Tensor | None = None
    micro_batch: int = 0
    processes: ProcessGroup = ALONE
    interrupt: Interrupt | None = None
    messages: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class StepMetrics:
    """An optimizer step that was taken.

    Attributes:
        losses: By name, and ``grad_norm``.
        rates: The learning rate of each group of parameters.
        stop: Whether one of the processes was asked to stop.
    """

    losses: dict[str, float]
    rates: list[float]
    stop: bool


def train_one_epoch(
    model: nn.Module,
    batches: Iterable[Batch],
    phase: GradientPhase,
    optimizer: torch.optim.Optimizer,
    state: EpochState,
) -> Iterator[StepMetrics]:
    """Take one optimizer step per batch and yield its metrics.

    A batch that the GPU has no memory for is taken in halves, and so are those after it: the gradient is the same but for
    rounding, batch norm, which sees only a part at a time, and dropout.

    Args:
        model: Already frozen but for what the phase trains.
        batches: Batches of the epoch, or of what is left of it.
        phase: Chooses the losses.
        optimizer: Over what the phase trains.
        state: Goes on with every step.

    Raises:
        NonFiniteError: A loss or gradient is not finite; the weights are those before the step.
        TrainingError: There is no memory for a single photo.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    step = _joined_step(Step(model, phase, state.class_weights), state.device, state.processes)
    asked = state.micro_batch
    for batch in batches:
        num = len(batch["label"])
        for group in optimizer.param_groups:
            group["lr"] = group["base_lr"] * learning_rate(state.done / state.length, phase.warmup)
        losses = None
        while losses is None:
            torch.manual_seed(mix_seed(state.seed, state.step) >> 1)  # fits a signed 64-bit number
            optimizer.zero_grad(set_to_none=True)
            parts = _parts(num, state.micro_batch or num, join=state.micro_batch == asked)
            losses = _add_gradients(step, batch, state.device, parts, state.processes)
            if losses is None:
                size = min(state.micro_batch or num, num)
                state.micro_batch = halved(size)
                state.messages.append(
                    f"{phase.name}: the GPU has no memory for {size} photos at a time; going on with {state.micro_batch}"
                )
        norm = torch.nn.utils.clip_grad_norm_(parameters, phase.clip_grad or float("inf"))
        asked_to_stop = bool(state.interrupt and state.interrupt.signal)
        told = torch.full_like(norm, float(asked_to_stop), dtype=torch.float32).reshape(1)
        sums = state.processes.total(torch.cat([torch.stack(list(losses.values())), told]))
        *values, stop = torch.cat([sums[:-1], norm.float().reshape(1), sums[-1:]]).tolist()
        metrics = dict(zip([*losses, "grad_norm"], values, strict=True))
        if not all(math.isfinite(value) for value in values):
            raise NonFiniteError(phase.name, metrics, batch["index"].tolist())
        optimizer.step()
        state.step += 1
        state.done += 1
        yield StepMetrics(metrics, [group["lr"] for group in optimizer.param_groups], stop > 0)


class Step(nn.Module):
    """The step of a phase as a module over the network, from a batch to its losses."""

    def __init__(self, model: nn.Module, phase: GradientPhase, class_weights: Tensor | None) -> None:
        super().__init__()
        self.model = model
        self.phase = phase
        self.class_weights = class_weights

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        return self.phase.losses(self.model, batch, self.class_weights)


def _joined_step(step: Step, device: torch.device, processes: ProcessGroup) -> nn.Module:
    """Return the step; of several processes the one that averages the gradients over them."""
    if processes.size == 1:
        return step
    if device.type == "cuda":
        return DistributedDataParallel(step, [device.index], gradient_as_bucket_view=True)
    # DDP sorts its buckets anew after the first step, and with them the order in which three or more processes add up: a
    # run that goes on in the middle of an epoch would get other bits. It does not where it looks for unused parameters;
    # torch warns once that this takes time.
    return DistributedDataParallel(step, gradient_as_bucket_view=True, find_unused_parameters=True)


def _add_gradients(
    step: nn.Module,
    batch: Batch,
    device: torch.device,
    parts: Sequence[tuple[int, int]],
    processes: ProcessGroup,
) -> dict[str, Tensor] | None:
    """Add up the gradients of a batch, part by part.

    Returns:
        The losses of this process's share of the batch; None where the GPU is too small.
    """
    losses: dict[str, Tensor] = {}
    try:
        for start, end in parts:
            share = float(batch["share"][start:end].sum())
            part = {key: value[start:end].to(device, non_blocking=True) for key, value in batch.items()}
            last = end == parts[-1][1]
            apart = isinstance(step, DistributedDataParallel) and not last
            with step.no_sync() if apart else nullcontext():  # type: ignore[operator]
                terms = step(part)
                # the average over processes makes it their sum
                (processes.size * share * terms["loss"]).backward()
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
        if processes.size > 1:  # the others are waiting for this process's gradients
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


def train_only(model: nn.Module, phase: Phase) -> None:
    """Freeze the network but for what the phase trains: no gradients and no new batch norm statistics elsewhere."""
    trunks, heads = phase.trained(model)
    model.requires_grad_(False)
    model.zero_grad(set_to_none=True)  # what the phase before left takes memory
    model.eval()
    model.training = True  # the flag of the root alone, which the steps read
    for module in (*trunks, *heads):
        module.requires_grad_(True)
        module.train()
        if isinstance(phase, GradientPhase) and phase.holds_norm():
            for part in module.modules():
                if isinstance(part, nn.modules.batchnorm._BatchNorm):
                    part.eval()


def build_optimizer(model: nn.Module, phase: GradientPhase) -> torch.optim.Optimizer:
    """Return a fresh optimizer over what the phase trains; each group remembers its base rate as ``base_lr``."""
    trunks, heads = phase.trained(model)
    groups = []
    for modules, factor in ((trunks, 1.0), (heads, phase.head_factor())):
        parameters = [p for module in modules for p in module.parameters()]
        if parameters:
            groups.append({"params": parameters, "base_lr": phase.lr * factor, "lr": phase.lr * factor})
    fused = next(model.parameters()).is_cuda  # one kernel for all parameters
    if phase.optimizer == "adamw":
        return torch.optim.AdamW(groups, weight_decay=phase.weight_decay, fused=fused)
    nesterov = phase.momentum > 0
    return torch.optim.SGD(
        groups, momentum=phase.momentum, weight_decay=phase.weight_decay, nesterov=nesterov, fused=fused
    )


def learning_rate(done: float, warmup: float) -> float:
    """Return the factor on the base rate after a share ``done`` in [0, 1) of a phase: linear rise, then cosine."""
    if done < warmup:
        return (done + 0.01 * warmup) / (1.01 * warmup)
    return 0.5 * (1.0 + math.cos(math.pi * (done - warmup) / (1.0 - warmup)))
