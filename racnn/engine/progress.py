"""Where a run stands."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from pydantic import Field
from torch import Tensor

Count = Annotated[int, Field(ge=0, le=10**15, strict=True)]  # what a checkpoint says is held to that


@dataclass
class Progress:
    """Where a run stands, in plain types that a checkpoint can hold.

    Attributes:
        outcomes: For each finished phase, whether it changed the network.
        epoch: Finished epochs of the phase.
        batch: Finished batches of the epoch.
        step: Optimizer steps of the whole run.
        total_epoch: Epochs begun in the whole run, which the photos' changes are drawn from.
        stale: Epochs since the phase's best one.
        start: The phase's validation items before it began; None until it has.
        best: The phase's best validation items, and the weights that gave them, where the phase keeps the best.
        trained_scales: How many scales have been trained so far.
        fusion_trained: Whether the fusion layer has been.
        best_key: Rank of ``best.pt``: how complete the network was, its top-1 and mean log-probability.
        log_length: Length of ``metrics.jsonl`` in bytes when the checkpoint was written.
    """

    outcomes: list[bool] = field(default_factory=list)
    epoch: Count = 0
    batch: Count = 0
    step: Count = 0
    total_epoch: Count = 0
    stale: Count = 0
    start: dict[str, float] | None = None
    best: dict[str, float] | None = None
    best_epoch: Count = 0
    best_weights: dict[str, Tensor] | None = None
    trained_scales: Count = 0
    fusion_trained: bool = False
    best_key: list[float] = field(default_factory=list)
    log_length: Count = 0
