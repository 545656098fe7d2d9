"""The zoom, forward and backward, against two loops over the photos."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from bench.device import waiter
from bench.figures import Figure, take_turns, times_as_fast
from bench.loops import published_loop, sliced_loop
from racnn.ops.crop import zoom
from racnn.ops.mask import frame_steepness
from racnn.ops.regions import from_boxes_xyxy
from racnn.sections import DEFAULT_BOUNDS, ModelConfig

OURS = "zoom"
TO_REGIONS = "back to regions"
TO_IMAGES = "back to regions and photos"
PUBLISHED = "the public copies' loop"
SLICED = "a well-written loop"


def measure(*, batch: int, side: int, rounds: int, device: torch.device) -> list[Figure]:
    """Return the figures of ``tools/benchmark.py zoom``."""
    model = ModelConfig()
    steepness = frame_steepness(model.steepness, side) if model.mask else None
    view = side // 2
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(batch, 3, side, side, generator=generator).to(device)
    regions = whole_pixel_regions(batch, side, DEFAULT_BOUNDS[0], generator).to(device)
    upstream = torch.randn(batch, 3, view, view, generator=generator).to(device)
    ours = partial(zoom, size=(view, view), antialias=model.antialias, steepness=steepness)
    cuts: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        PUBLISHED: partial(published_loop, side=view, k=model.steepness),
        SLICED: partial(sliced_loop, side=view, steepness=steepness),
        OURS: ours,
    }
    calls = {
        f"{name}, {far}": there_and_back(cut, images, regions, upstream, to_images=far == TO_IMAGES)
        for name, cut in cuts.items()
        for far in (TO_REGIONS, TO_IMAGES)
    }
    del calls[f"{SLICED}, {TO_REGIONS}"]  # through its mask alone: less than the others do
    times = take_turns(calls, rounds, wait=waiter(device))
    near, far = f"{OURS}, {TO_REGIONS}", f"{OURS}, {TO_IMAGES}"
    return [
        times_as_fast(near, f"{PUBLISHED}, {TO_REGIONS}", times, 15.0),  # as far as training goes
        times_as_fast(far, f"{PUBLISHED}, {TO_IMAGES}", times),
        times_as_fast(far, f"{SLICED}, {TO_IMAGES}", times, 5.0 if device.type == "cuda" else 1.0),
    ]


def there_and_back(
    cut: Callable[[Tensor, Tensor], Tensor],
    images: Tensor,
    regions: Tensor,
    upstream: Tensor,
    *,
    to_images: bool,
) -> Callable[[], None]:
    """Return a call that cuts the views and takes a gradient back to the regions and, if asked, the images."""
    images, regions = images.clone().requires_grad_(to_images), regions.clone().requires_grad_()

    def call() -> None:
        images.grad = regions.grad = None
        cut(images, regions).backward(upstream)

    return call


def whole_pixel_regions(
    num: int, side: int, bounds: tuple[float, float], generator: torch.Generator
) -> Tensor:
    """Return regions [num, 3] of square images, with sides within bounds and edges between pixels."""
    low, high = (round(bound * side) for bound in bounds)
    length = torch.randint(low, high + 1, (num, 1), generator=generator)
    corner = (torch.rand(num, 2, generator=generator) * (side - length + 1)).long()
    return from_boxes_xyxy(torch.cat([corner, corner + length], dim=1).float(), (side, side))
