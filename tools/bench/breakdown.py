"""How a call's time is shared among kinds of operations, as the profiler sees it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEvent
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
    """Return the share of each group of :data:`GROUPS`, and of the rest, in the time of a call's operations.

    An operation that fits no group counts with the one that called it, as a convolution's bias does. Empty where the
    profiler is not allowed to see what a GPU does.
    """
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")
    with profile(activities=activities) as profiler:
        call()
        waiter(device)()
    found = dict.fromkeys([*GROUPS, REST], 0.0)
    for event in profiler.events():
        # kernels stand in the list twice, by themselves and with the operation that started them: the latter counts
        if event.device_type == DeviceType.CPU:
            on_gpu = device.type == "cuda"
            found[_group(event)] += event.self_device_time_total if on_gpu else event.self_cpu_time_total
    total = sum(found.values())
    return {name: time / total for name, time in found.items()} if total else {}


def _group(event: FunctionEvent | None) -> str:
    """Return the group that an operation, or the nearest one around it that has a group, belongs to."""
    while event is not None:
        for name, parts in GROUPS.items():
            if any(part in event.name for part in parts):
                return name
        event = event.cpu_parent
    return REST
