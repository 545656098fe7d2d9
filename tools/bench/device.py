"""What depends on the device: waiting for it, counting its work, and the most it could do."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from functools import partial

import torch

from bench.figures import Figure, Times, seconds, summary
from racnn.models.cost import multiplications

MATRIX_SIDE = 8192  # large enough for a GPU to reach its most


def waiter(device: torch.device) -> Callable[[], None]:
    """Return a call that ends when the device has done all that it was told to."""
    return partial(torch.cuda.synchronize, device) if device.type == "cuda" else lambda: None


def shares_of_the_peak(
    calls: Mapping[str, Callable[[], object]],
    times: Times,
    device: torch.device,
    *,
    side: int = MATRIX_SIDE,
    rounds: int = 10,
) -> list[Figure]:
    """Return how much of a matrix product's speed calls reach, in the operations that they need; measured on CUDA alone.

    Args:
        calls: By name.
        times: Times by the same names, in seconds.
        device: Where they run; on a CPU nothing is measured.
        side: Side of the matrices.
        rounds: How often the product is measured.
    """
    if device.type != "cuda":
        return []
    peak = matrix_product_rate(device, side=side, rounds=rounds)
    name = f"bf16 matrix product, {side} x {side}"
    return [
        summary(key, "share of the FLOP/s of", name, [work / t / peak for t in times[key]], "at least")
        for key, work in ((key, operations(call)) for key, call in calls.items())
    ]


def matrix_product_rate(device: torch.device, *, side: int, rounds: int) -> float:
    """Return the operations per second of a bf16 product of two square matrices."""
    left, right = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    multiply = partial(torch.matmul, left, right)
    for _ in range(3):
        multiply()
    return 2.0 * side**3 / statistics.median(seconds(multiply, waiter(device)) for _ in range(rounds))


def operations(call: Callable[[], object]) -> int:
    """Return the floating-point operations of a call's products and convolutions, a multiply-add counted as two."""
    return int(2 * multiplications(call))
