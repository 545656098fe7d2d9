"""How much memory a call takes at its peak."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TypeVar

import torch

Result = TypeVar("Result")


def in_fresh_process(call: Callable[[], Result]) -> Result:
    """Return what a call returns in a new process; the call has to be picklable."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(call).result()


def peak_added(call: Callable[[], object], device: torch.device) -> int:
    """Return the bytes by which a process grows, at most, during a call above what it held before.

    On CUDA these are torch's own allocations, its workspaces included. On a CPU they are the pages of the whole
    process (Linux alone tells), the most there ever were less those before the call: activations and gradients, but
    also what libraries keep for themselves, and what the call found ready is not counted. So the process must be
    fresh, must never have been larger before, and the call must be its first. ``getrusage`` tells the same except that
    its ``ru_maxrss`` starts, in a child, at the peak of the parent, which here has run the same step.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    before = _status("VmRSS")
    call()
    return max(_status("VmHWM") - before, 1)


def _status(field: str) -> int:
    """Return a field of this process's status in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) * 1024
    raise AssertionError(field)
