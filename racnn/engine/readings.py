"""What is known of a training step, and when: at once on a CPU, a step late on a GPU, so that the host never waits for it."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from racnn.errors import TrainingError


class NonFiniteError(TrainingError):
    """A loss or gradient is not finite.

    Attributes:
        values: The losses and ``grad_norm`` by name, those that are finite too.
        index: Positions of the batch's photos in their split.
        number: Of the step, counted from 0 in its epoch's loop.
    """

    def __init__(self, phase: str, values: dict[str, float], index: list[int], number: int) -> None:
        shown = ", ".join(f"{name} = {value}" for name, value in values.items() if not math.isfinite(value))
        super().__init__(
            f"phase {phase}: {shown} is not finite; stopped before the optimizer step. "
            "Try a smaller learning rate, clip_grad, or run.precision=fp32"
        )
        self.values = values
        self.index = index
        self.number = number


@dataclass(frozen=True)
class Taken:
    """An optimizer step that was taken.

    Attributes:
        number: Of the step, counted from 0 in its epoch's loop.
        losses: By name, and ``grad_norm``.
        rates: The learning rate of each group of parameters.
        stop: Whether one of the processes was told to stop.
    """

    number: int
    losses: dict[str, float]
    rates: list[float]
    stop: bool


class Readings:
    """What is read of the steps: their losses, checked.

    On a CPU at once, before the weights change. A GPU is to have the next step in hand before the host waits for the
    last one, so there they are read one step late, or when everything is asked for; a step whose losses or gradient are not
    finite, and all steps after it, are left out by the optimizer on the device. The weights are then those before the step;
    the optimizer's state is of no use any more.

    Args:
        phase: Name of the phase, for messages.
        late: Read one step late; the optimizer must be a fused one.
    """

    def __init__(self, phase: str, *, late: bool) -> None:
        self._phase = phase
        self._late = late
        self._number = 0
        self._sent: deque[Callable[[], Taken]] = deque()
        self._broken: Tensor | None = None  # 1 on the device once something was not finite

    def send(
        self, names: Sequence[str], values: Tensor, index: Tensor, optimizer: torch.optim.Optimizer
    ) -> None:
        """Take what is known of a step before the optimizer does it.

        Args:
            names: Of the values but the last.
            values: [len(names) + 1] on the device; the last is above 0 where a process was told to stop.
            index: [B] on the CPU, positions of the batch's photos in their split.
            optimizer: That of the step.

        Raises:
            NonFiniteError: They are read at once, and a value is not finite.
        """
        number, rates = self._number, [group["lr"] for group in optimizer.param_groups]
        self._number += 1
        arrived = _on_its_way(values)

        def read() -> Taken:
            *figures, told = arrived()
            losses = dict(zip(names, figures, strict=True))
            if not all(math.isfinite(figure) for figure in figures):
                raise NonFiniteError(self._phase, losses, index.tolist(), number)
            return Taken(number, losses, rates, told > 0)

        if self._late:
            broken = (~values.isfinite()).any().float()
            self._broken = broken if self._broken is None else torch.maximum(self._broken, broken)
            optimizer.found_inf = self._broken  # type: ignore[attr-defined]  # as torch.amp.GradScaler tells it
            self._sent.append(read)
        else:
            taken = read()
            self._sent.append(lambda: taken)

    def read(self, *, everything: bool = False) -> list[Taken]:
        """Return the steps that were not returned yet, in order; on a GPU all but the last, or everything.

        Raises:
            NonFiniteError: One of them was not taken.
        """
        left = 1 if self._late and not everything else 0
        return [self._sent.popleft()() for _ in range(len(self._sent) - left)]


def _on_its_way(values: Tensor) -> Callable[[], list[float]]:
    """Begin to copy values to the host and return a call that waits for them."""
    if not values.is_cuda:
        return values.tolist
    copy = torch.empty(values.shape, pin_memory=True).copy_(values, non_blocking=True)
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(values.device))

    def arrived() -> list[float]:
        event.synchronize()
        return copy.tolist()

    return arrived
