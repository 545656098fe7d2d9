"""Photos through the whole recursion, against the same network one photo at a time.

The baseline is the network in float32, channels first, with a graph that nobody asks for: as a loop written in haste.
Early exit is measured at its ends, a threshold that every photo reaches at the first look and one that none reaches,
beside what the multiplications promise.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from bench.device import shares_of_the_peak, waiter
from bench.figures import Calls, Figure, share_of_time, summary, take_turns, times_as_fast
from bench.networks import default_config, ours, photos, plain
from racnn.engine.evaluator import predict
from racnn.models import RACNN
from racnn.models.early_exit import NEVER, EarlyExit, look_until_confident, scale_costs


def measure(*, backbone: str, batch: int, side: int, rounds: int, device: torch.device) -> list[Figure]:
    """Return the figures of ``tools/benchmark.py infer``."""
    config = default_config(backbone, side)
    data = photos(batch, side, device)
    whole, baseline = f"{backbone}, photos/s", f"{backbone}, plain, one photo at a time"
    sure, unsure = (f"{backbone}, early exit, {who}" for who in ("all sure at the first look", "none sure"))
    model = ours(config, device).eval()
    scales = len(config.model.view_sizes)
    costs = scale_costs(model, source_size=side, scales=scales)
    pools = tuple((1.0,) * depth for depth in range(1, scales))

    def early(threshold: float) -> Callable[[], object]:
        when = EarlyExit("", threshold, pools, tuple(costs))
        return partial(look_until_confident, model, data["image"], when, scales=scales, fused=True)

    calls: Calls = {
        baseline: partial(one_at_a_time, plain(config, device).eval(), data["image"]),
        whole: partial(predict, model, [data], device=device),
        sure: early(0.0),
        unsure: early(NEVER),
    }
    times = take_turns(calls, rounds, wait=waiter(device))
    return [
        times_as_fast(whole, baseline, times, 2.0),
        share_of_time(sure, unsure, times),
        summary(f"{sure}: multiplications", "share of those of", unsure, [costs[0]], "at most"),
        share_of_time(unsure, whole, times),
        *shares_of_the_peak({whole: calls[whole]}, times, device),
    ]


def one_at_a_time(model: RACNN, images: Tensor) -> None:
    """Run the network on each image by itself."""
    for image in images:
        model(image[None])
