"""Where the time of each phase of the default recipe goes."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from bench.breakdown import shares
from bench.device import waiter
from bench.figures import Figure, share_of_time, summary, take_turns
from bench.networks import default_config, photos
from bench.step import engine_step
from racnn.config import Config
from racnn.models.phase import GradientPhase, Phase, upcoming


def measure(*, backbone: str, batch: int, side: int, rounds: int, device: torch.device) -> list[Figure]:
    """Return for each phase the time of a step, as a share of that of all classifiers together, and what it is spent on."""
    config = default_config(backbone, side)
    data = photos(batch, side, device)
    data["pseudo_box"] = torch.tensor([[-0.5, -0.6, 0.7, 0.4]], device=device).expand(batch, 4)
    steps = {
        phase.name[3:]: engine_step(config, phase, data, device)
        for phase in phases_of(config)
        if isinstance(phase, GradientPhase)
    }
    dearest = max(steps, key=lambda name: (name.startswith("classification"), len(name)))
    times = take_turns(steps, rounds, wait=waiter(device))
    figures = []
    for name, step in steps.items():
        figures.append(share_of_time(name, dearest, times))
        figures += [
            summary(f"{name}: {group}", "share of the time of", name, [share], "at most")
            for group, share in shares(step, device).items()
        ]
    return figures


def phases_of(config: Config) -> Iterator[Phase]:
    """Yield each phase of a schedule once, at a rate that leaves the weights be."""
    done: list[bool] = []
    seen = set()
    while (phase := upcoming(config.schedule, config.model.num_scales, done)) is not None:
        done.append(True)
        if phase.name[3:] not in seen:
            seen.add(phase.name[3:])
            yield phase.model_copy(update={"lr": 1e-8})
