"""May a run go on from a checkpoint? What training would stumble over hours later is refused at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from racnn.engine.progress import Progress
from racnn.engine.steps import build_optimizer
from racnn.engine.stored import Stored
from racnn.errors import CheckpointError
from racnn.models.phase import Phase, upcoming

# What the optimizers keep of each parameter; `step` is one number, the others have the parameter's shape.
KEPT = {"sgd": {"momentum_buffer"}, "adamw": {"step", "exp_avg", "exp_avg_sq"}}
NEVER_NEGATIVE = {"step", "exp_avg_sq"}


def check_resumable(stored: Stored) -> Progress:
    """Return where the run of a checkpoint stood.

    Raises:
        CheckpointError: It does not say, or says what cannot be of its configuration and network.
    """
    progress, optimizer = stored.content.progress, stored.content.optimizer
    if progress is None:
        raise CheckpointError(
            f"{stored.path}: does not say where its run stood, so it cannot be gone on from"
        )
    faults = list(_faults_of_weights(progress, stored))
    if (
        phase := upcoming(stored.config.schedule, stored.config.model.num_scales, progress.outcomes)
    ) is not None:
        faults += _faults_of_progress(progress, phase, stored)
        if optimizer is not None:
            own = build_optimizer(stored.network, phase)
            faults += _faults_of_optimizer(optimizer, own, KEPT[phase.optimizer])
    if faults:
        raise CheckpointError(f"{stored.path}: " + "; ".join(faults))
    return progress


def restore_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Fill a fresh optimizer with what a checkpoint kept of it; rates and the like are the configuration's."""
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state["state"], "param_groups": groups})


def _faults_of_weights(progress: Progress, stored: Stored) -> Iterator[str]:
    own = stored.content.model
    for name, value in (progress.best_weights or {}).items():
        if name not in own or own[name].shape != value.shape or own[name].dtype != value.dtype:
            yield f"progress.best_weights.{name} fits no part of the network"
    for name in ("step", "trained_scales", "fusion_trained"):
        said, twice = getattr(progress, name), getattr(stored.content, name)
        if said != twice:
            yield f"progress.{name} is {said}, but {name} is {twice}"


def _faults_of_progress(progress: Progress, phase: Phase, stored: Stored) -> Iterator[str]:
    if progress.epoch > phase.epochs:
        yield f"progress.epoch is {progress.epoch}, but phase {phase.name} has {phase.epochs} epochs"
    scales = max(progress.trained_scales, phase.num_scales_run(stored.config.model.num_scales))
    names = set(phase.score_names(scales))
    if progress.best is not None and progress.best.keys() != names:
        yield f"progress.best has {sorted(progress.best)}, but phase {phase.name} is judged by {sorted(names)}"
    if phase.trains_fusion and progress.start is not None and not progress.fusion_trained:
        yield f"progress.fusion_trained is False in the middle of phase {phase.name}"
    begun = progress.epoch > 0 or progress.best is not None
    if phase.keep != "last" and begun and (progress.best is None or progress.best_weights is None):
        yield f"progress.best_weights is missing, which phase {phase.name} keeps"


def _faults_of_optimizer(
    state: Mapping[str, Any], optimizer: torch.optim.Optimizer, kept: set[str]
) -> Iterator[str]:
    groups, entries = state.get("param_groups"), state.get("state")
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if _group_sizes(groups) != [len(group["params"]) for group in optimizer.param_groups]:
        yield "optimizer.param_groups are not those of the phase"
    if not isinstance(entries, dict):
        yield f"optimizer.state: expected a dictionary, found {type(entries).__name__}"
        return
    for number, entry in entries.items():
        known = type(number) is int and 0 <= number < len(parameters)
        if not known or not isinstance(entry, dict) or entry.keys() not in (set(), kept):
            yield f"optimizer.state.{number} is of no parameter of the phase"
            continue
        for name, value in entry.items():
            if not _may_be(name, value, parameters[number]):
                yield f"optimizer.state.{number}.{name} does not fit"


def _group_sizes(groups: Any) -> list[int | None]:
    """Return how many parameters each group has, None for what is no group."""
    members = [group.get("params") if isinstance(group, dict) else None for group in _listed(groups)]
    return [len(names) if isinstance(names, list) else None for names in members]


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _may_be(name: str, value: Any, parameter: Tensor) -> bool:
    """Return whether an optimizer can have kept this of a parameter; SGD keeps None before its first step."""
    if value is None:
        return name == "momentum_buffer"
    shape = torch.Size() if name == "step" else parameter.shape
    if not isinstance(value, Tensor) or value.shape != shape or value.dtype != torch.float32:
        return False
    return bool(value.isfinite().all()) and not (name in NEVER_NEGATIVE and bool((value < 0).any()))
