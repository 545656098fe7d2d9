"""Steps of training, against the same network trained plainly.

Plainly: float32, channels first, every parameter with a gradient in every phase, and the loss followed back through
all that it was made from; then the phase's own optimizer.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.breakdown import LAYERS, shares
from bench.device import shares_of_the_peak, waiter
from bench.figures import Figure, share_of_time, summary, take_turns, times_as_fast
from bench.memory import in_fresh_process, peak_added
from bench.networks import default_config, ours, photos, plain
from racnn.config import Config
from racnn.engine.loop import EpochState, build_optimizer, train_one_epoch, train_only
from racnn.models import RACNN
from racnn.models.phase import GradientPhase
from racnn.models.racnn.losses import true_class_prob
from racnn.models.racnn.phases import Ranking

Batch = dict[str, Tensor]
Step = Callable[[], None]


def measure(*, backbone: str, batch: int, side: int, rounds: int, device: torch.device) -> list[Figure]:
    """Return the figures of ``tools/benchmark.py step`` for one backbone."""
    classify, rank, smoothed = (
        f"{backbone}, {name}" for name in ("classification", "ranking, exact", "ranking, smoothed")
    )
    frozen = f"{classify}, model.frozen_stages=2"
    plain_classify, plain_rank = (f"{backbone}, plain {kind}" for kind in ("classification", "ranking"))
    rest = f"{backbone}, all but convolution and linear layers"
    # before this process has grown: nothing else would be left for the children on a small machine
    memory = memory_share(backbone, batch, side, device)
    config = default_config(backbone, side)
    data = photos(batch, side, device)
    steps: dict[str, Step] = {
        plain_classify: plain_step(config, phase_of(config, "classification"), data, device),
        plain_rank: plain_step(config, phase_of(config, "ranking"), data, device),
        classify: engine_step(config, phase_of(config, "classification"), data, device),
        frozen: engine_step(with_frozen_stages(config), phase_of(config, "classification"), data, device),
        rank: engine_step(config, phase_of(config, "ranking", gradient="exact"), data, device),
        smoothed: engine_step(config, phase_of(config, "ranking", gradient="smoothed"), data, device),
    }
    times = take_turns(steps, rounds, wait=waiter(device))
    profiles = [shares(steps[classify], device) for _ in range(3)]
    outside = [1.0 - profile[LAYERS] for profile in profiles if profile]
    return [
        times_as_fast(classify, plain_classify, times, 2.0),
        times_as_fast(frozen, classify, times),
        times_as_fast(rank, plain_rank, times, 4.0),
        share_of_time(rank, classify, times, 0.5),
        share_of_time(smoothed, classify, times),
        *([summary(rest, "share of the time of", classify, outside, "at most", 0.2)] if outside else []),
        summary(rank, "share of the memory of", plain_rank, [memory], "at most", 0.6),
        *shares_of_the_peak({classify: steps[classify], rank: steps[rank]}, times, device),
    ]


def phase_of(config: Config, kind: str, **changes: object) -> GradientPhase:
    """Return the last phase of a kind in the default recipe, for all scales, at a rate that leaves the weights be."""
    found = [p for p in config.phases() if p.kind == kind and isinstance(p, GradientPhase)][-1]
    last = config.model.num_scales - (kind == "ranking")
    scales = tuple(range(1, last + 1))
    return found.model_copy(update={"lr": 1e-8, "scales": scales, **changes})


def with_frozen_stages(config: Config) -> Config:
    """Return the configuration with the first two stages of the backbones as loaded."""
    return config.model_copy(update={"model": config.model.model_copy(update={"frozen_stages": 2})})


def engine_step(config: Config, phase: GradientPhase, batch: Batch, device: torch.device) -> Step:
    """Return a call that trains as :mod:`racnn.engine` does, for an epoch of one batch."""
    model = ours(config, device)
    batch = with_noise(batch, phase)
    train_only(model, phase)
    optimizer = build_optimizer(model, phase)

    def step() -> None:
        for _ in train_one_epoch(model, [batch], phase, optimizer, EpochState(device)):
            pass

    return step


def plain_step(config: Config, phase: GradientPhase, batch: Batch, device: torch.device) -> Step:
    """Return a call that trains plainly."""
    model = plain(config, device).train()
    batch = with_noise(batch, phase)
    optimizer = build_optimizer(model, phase)
    loss = plain_ranking if isinstance(phase, Ranking) else _loss_of_the_engine

    def step() -> None:
        model.zero_grad(set_to_none=True)
        loss(model, batch, phase).backward()
        optimizer.step()

    return step


def with_noise(batch: Batch, phase: GradientPhase) -> Batch:
    """Return the batch with the random numbers that a phase wants of the loader."""
    numbers = torch.rand(len(batch["label"]), phase.num_noise())
    return batch | {"noise": numbers.to(batch["label"].device)}


def plain_ranking(model: RACNN, batch: Batch, phase: GradientPhase) -> Tensor:
    """Return the ranking loss (equation 9) with a derivative in both of its probabilities, as copies have it."""
    assert isinstance(phase, Ranking)
    sure = [true_class_prob(logits, batch["label"], phase.compare) for logits in model(batch["image"]).logits]
    pairs = [F.relu(sure[s - 1] - sure[s] + phase.margin).mean() for s in phase.scales]
    return torch.stack(pairs).sum()


def _loss_of_the_engine(model: RACNN, batch: Batch, phase: GradientPhase) -> Tensor:
    return phase.losses(model, batch)["loss"]


def memory_share(backbone: str, batch: int, side: int, device: torch.device) -> float:
    """Return the memory that the first exact ranking step adds, as a share of what the plain one adds."""
    make = partial(first_step_memory, backbone=backbone, batch=batch, side=side, device=device)
    return in_fresh_process(partial(make, plainly=False)) / in_fresh_process(partial(make, plainly=True))


def first_step_memory(*, backbone: str, batch: int, side: int, device: torch.device, plainly: bool) -> int:
    """Return the bytes that the first ranking step of a network adds to the memory of this process."""
    config = default_config(backbone, side)
    make = plain_step if plainly else engine_step
    step = make(config, phase_of(config, "ranking", gradient="exact"), photos(batch, side, device), device)
    return peak_added(step, device)
