"""What frozen scales show of each photo, read once a phase: the box that an APN is taught, the place of a finer view.

Both are read from the whole photo without random changes, and then follow the photo's changes like an annotation.

The scale is frozen while its APN learns. Reading its response once affords a map of a much enlarged view.

All coarser scales are frozen while a single finer one learns. Reading once what they propose, a training step need not run
them; and the finer scale learns on what it will be shown in use, where of a random crop they propose too small a part, because
an APN is uncertain of the size and leans to the mean.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor

from racnn.models.parts import Parts
from racnn.models.racnn.losses import response_map
from racnn.models.racnn.model import RACNN
from racnn.ops.ddt import CommonPart, DescriptorSums, common_part, descriptor_sums
from racnn.ops.heatmap import component_box, peak_point, peak_region
from racnn.ops.regions import bounding_region, compose, corners, halves, jitter, rectangle, relative

T = TypeVar("T")
Gather = Callable[[list[Any]], list[Any]]


@torch.no_grad()
def find_common_part(
    model: RACNN,
    batches: Iterable[dict[str, Tensor]],
    scale: int,
    config: Any,
    *,
    device: torch.device,
    gather: Gather = list,
    after_batch: Callable[[], None] = lambda: None,
) -> CommonPart:
    """Return what a scale's views of all training photos have in common, for ``response: ddt``.

    Args:
        model: Put into evaluation mode.
        batches: Batches of the training photos, as in :func:`read_boxes`, like the other arguments.
    """
    model.eval()
    weight = model.classifiers[scale - 1].get_parameter("weight")

    def add_up(batch: dict[str, Tensor]) -> DescriptorSums:
        images, labels = batch["image"].to(device), batch["label"].to(device)
        output = model(images, num_scales=scale)
        view = model.enlarged_view(scale, images, output, config.enlarge)
        features, inner = model.extract_with_inner(scale, view, model.query(output.scales[: scale - 1]))
        gain = model.gain(model.weighed(scale, features))
        seen = response_map(features, weight=weight, labels=labels, gain=gain)
        return descriptor_sums(inner, seen)

    own: list[DescriptorSums] = []  # at most one: a process may have had no photos
    for parts in _in_parts(batches, add_up, config.enlarge, after_batch):
        own = [functools.reduce(DescriptorSums.plus, own + parts)]
    everyones = gather([sums.cpu() for sums in own])
    return common_part(functools.reduce(DescriptorSums.plus, everyones))


@torch.no_grad()
def read_boxes(
    model: RACNN,
    batches: Iterable[dict[str, Tensor]],
    scale: int,
    config: Any,
    *,
    common: CommonPart | None = None,
    device: torch.device,
    gather: Gather = list,
    after_batch: Callable[[], None] = lambda: None,
) -> Tensor:
    """Return the box that a scale's response shows of each photo.

    Args:
        model: Put into evaluation mode.
        batches: Batches of photos without random changes, from :func:`racnn.data.eval_loader`.
        scale: Whose response is read, counted from 1.
        config: The phase, which says how.
        common: From :func:`find_common_part`, needed for ``response: ddt``.
        device: Where the network is.
        gather: Joins the rows of all processes that share the batches; all of them return the boxes of all photos.
        after_batch: Called after each batch; it may raise to stop.

    Returns:
        [N, 4] float32 on the CPU, (x0, y0, x1, y1) in the frame of the source; with ``target: peak`` a point, whose
        two corners are the same.
    """
    model.eval()
    weight = model.classifiers[scale - 1].get_parameter("weight") if config.response == "cam" else None

    def read(batch: dict[str, Tensor]) -> Tensor:
        images, labels = batch["image"].to(device), batch["label"].to(device)
        output = model(images, num_scales=scale)
        view = model.enlarged_view(scale, images, output, config.enlarge)
        query = model.query(output.scales[: scale - 1])
        if config.response == "ddt":
            assert common is not None
            response = common.response(model.extract_with_inner(scale, view, query)[1])
        else:
            seen = output.scales[scale - 1]
            features = seen.features if view is seen.view else model.extract_raw(scale, view, query)
            gain = model.gain(model.weighed(scale, features))
            response = response_map(features, weight=weight, labels=labels, gain=gain)
        if config.target == "peak":
            box = peak_point(response).repeat(1, 2)
        else:
            box = component_box(response, config.level, config.trim)
        region = output.regions[scale - 1]
        return (region[:, :2].repeat(1, 2) + halves(region).repeat(1, 2) * box).float().cpu()

    boxes = [torch.cat(parts) for parts in _in_parts(batches, read, config.enlarge, after_batch)]
    return torch.cat(gather(boxes))


@torch.no_grad()
def read_regions(
    model: RACNN,
    batches: Iterable[dict[str, Tensor]],
    scale: int,
    *,
    device: torch.device,
    gather: Gather = list,
    after_batch: Callable[[], None] = lambda: None,
) -> Tensor:
    """Return where the coarser scales let a scale look at each photo.

    Args:
        model: Put into evaluation mode.
        batches: Batches of photos without random changes, as in :func:`read_boxes`, like the other arguments.
        scale: Number of the scale that looks, counted from 1; at least 2.

    Returns:
        [N, 4] float32 on the CPU, (x0, y0, x1, y1) in the frame of the source.
    """
    model.eval()

    def read(batch: dict[str, Tensor]) -> Tensor:
        region = model(batch["image"].to(device), num_scales=scale - 1).scales[-1].next_region
        return corners(region).float().cpu()

    boxes = [torch.cat(parts) for parts in _in_parts(batches, read, 1.0, after_batch)]
    return torch.cat(gather(boxes))


def finer_view(
    model: RACNN, batch: dict[str, Tensor], scale: int, noise: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return a finer scale's view of the photos of a batch whose ``pseudo_box`` says where it lies, and its region [B, 3].

    Args:
        model: The network; the coarser scales are not run.
        batch: With ``image`` and ``pseudo_box``.
        scale: Counted from 1; at least 2.
        noise: [B, 3] in [-1, 1], which jitters the region, or None.
    """
    region = bounding_region(batch["pseudo_box"], model.sides)  # moved inside where a random crop cuts it off
    if noise is not None:
        region = jitter(region, noise)
    return model.crop(scale, model.normalise(batch["image"]), region), region


def _in_parts(
    batches: Iterable[dict[str, Tensor]],
    call: Callable[[dict[str, Tensor]], T],
    enlarge: float,
    after_batch: Callable[[], None],
) -> Iterator[list[T]]:
    """Yield what a call returns of the parts of each batch."""
    parts = Parts()
    for batch in batches:
        # an enlarged view takes the place of so many plain ones in memory
        parts.size = parts.size or max(1, int(len(batch["label"]) / enlarge**2))
        yield parts.run(call, batch)
        after_batch()


def target_region(
    box: Tensor, region: Tensor, target: str, *, frame: Tensor | None = None, sides: int = 1
) -> Tensor:
    """Return the region that an APN should propose.

    Args:
        box: [B, 4] as :func:`read_boxes` returns them, moved with the photo's random changes.
        region: [B, 3], where the view that it was read from lies in the source.
        target: 'component': the bounding square of what the view shows of the box. 'peak': the paper's square of half
            the view's side around the point.
        frame: [B, 3], the region of the view that the APN reads; None: the same.
        sides: 2 for rectangles: the box itself, and as 'peak' a square.

    Returns:
        [B, 3] or [B, 4], regions inside the view, in the frame of what the APN reads.
    """
    inside = (box - region[:, :2].repeat(1, 2)) / halves(region).repeat(1, 2)
    if target == "peak":
        found = peak_region(inside[:, :2])
    else:
        found = bounding_region(inside.clamp(-1.0, 1.0), sides)
    found = found if sides == 1 else rectangle(found)
    return found if frame is None else relative(frame, compose(region, found))
