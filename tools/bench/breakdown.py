"""How a call's time is shared among kinds of operations, as the profiler sees it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from bench.device import waiter

# Parts of the names of operations and of their derivatives, the first that fits counts; what fits none is REST
LAYERS = "convolution and linear"
GROUPS: dict[str, tuple[str, ...]] = {
    LAYERS: ("conv", "linear", "addmm", "aten::mm"),
    "zoom": ("embedding_bag", "bmm"),
    "pooling": ("pool",),
    "relu": ("relu", "threshold"),
    "copies and casts": ("copy", "clone"),
}
REST = "all else"


def shares(call: Callable[[], object], device: torch.device) -> dict[str, float]:
    """Return the share of each group of :data:`GROUPS`, and of the rest, in the time of a call's operations."""
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")
    with profile(activities=activities) as profiler:
        call()
        waiter(device)()
    found = dict.fromkeys([*GROUPS, REST], 0.0)
    for event in profiler.key_averages():
        # kernels stand in the list twice, by themselves and with the operation that started them: the latter counts
        if event.device_type == DeviceType.CPU:
            on_gpu = device.type == "cuda"
            found[_group(event.key)] += event.self_device_time_total if on_gpu else event.self_cpu_time_total
    total = sum(found.values())
    return {name: time / total for name, time in found.items()}


def _group(operation: str) -> str:
    """Return the group that an operation belongs to."""
    fitting = (name for name, parts in GROUPS.items() if any(part in operation for part in parts))
    return next(fitting, REST)
