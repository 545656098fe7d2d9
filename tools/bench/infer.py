"""Photos through the whole recursion, against the same network one photo at a time.

The baseline is the network in float32, channels first, with a graph that nobody asks for: as a loop written in haste.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from bench.device import shares_of_the_peak, waiter
from bench.figures import Calls, Figure, take_turns, times_as_fast
from bench.networks import default_config, ours, photos, plain
from racnn.engine.loop import predict
from racnn.models import RACNN


def measure(*, backbone: str, batch: int, side: int, rounds: int, device: torch.device) -> list[Figure]:
    """Return the figures of ``tools/benchmark.py infer``."""
    config = default_config(backbone, side)
    data = photos(batch, side, device)
    whole, baseline = f"{backbone}, photos/s", f"{backbone}, plain, one photo at a time"
    calls: Calls = {
        baseline: partial(one_at_a_time, plain(config, device).eval(), data["image"]),
        whole: partial(predict, ours(config, device), [data], device=device),
    }
    times = take_turns(calls, rounds, wait=waiter(device))
    return [
        times_as_fast(whole, baseline, times, 2.0),
        *shares_of_the_peak({whole: calls[whole]}, times, device),
    ]


def one_at_a_time(model: RACNN, images: Tensor) -> None:
    """Run the network on each image by itself."""
    for image in images:
        model(image[None])
