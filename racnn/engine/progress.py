"""Where a run stands."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor


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
        best_key: Of ``best.pt``: how complete the network was, its top-1 and mean log-probability.
        log_length: Of ``metrics.jsonl`` in bytes when the checkpoint was written.
    """

    outcomes: list[bool] = field(default_factory=list)
    epoch: int = 0
    batch: int = 0
    step: int = 0
    total_epoch: int = 0
    stale: int = 0
    start: dict[str, float] | None = None
    best: dict[str, float] | None = None
    best_epoch: int = 0
    best_weights: dict[str, Tensor] | None = None
    trained_scales: int = 0
    fusion_trained: bool = False
    best_key: list[float] = field(default_factory=list)
    log_length: int = 0
