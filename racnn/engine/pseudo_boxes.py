"""What frozen scales show of each photo, read once a phase: the box that an APN is taught, the place of a finer view.

Both are read from the whole photo without random changes, and then follow the photo's changes like an annotation.

The scale is frozen while its APN learns. Reading its response once affords a map of a much enlarged view.

All coarser scales are frozen while a single finer one learns. Reading once what they propose, a training step need not run
them; and the finer scale learns on what it will be shown in use, where of a random crop they propose too small a part, because
an APN is not sure of a size and leans to the mean.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from racnn.config import PhaseConfig
from racnn.engine.distributed import ALONE, ProcessGroup
from racnn.engine.parts import Parts
from racnn.models import RACNN
from racnn.models.racnn.losses import response_map
from racnn.ops.ddt import CommonPart, DescriptorSums, common_part, descriptor_sums
from racnn.ops.heatmap import component_box, peak_point, peak_region
from racnn.ops.regions import bounding_region

if TYPE_CHECKING:
    from racnn.engine.phases import Phase
    from racnn.engine.run import Run

T = TypeVar("T")


@torch.no_grad()
def find_common_part(
    model: RACNN,
    batches: Iterable[dict[str, Tensor]],
    scale: int,
    config: PhaseConfig,
    *,
    device: torch.device,
    world: ProcessGroup = ALONE,
    after_batch: Callable[[], None] = lambda: None,
) -> CommonPart:
    """Return what a scale's views of all training photos have in common, for ``response: ddt``.

    Args:
        model: Put into evaluation mode.
        batches: Of the training photos, as in :func:`read_boxes`, like the other arguments.
    """
    model.eval()
    weight = model.classifiers[scale - 1].get_parameter("weight")

    def add_up(batch: dict[str, Tensor]) -> DescriptorSums:
        images, labels = batch["image"].to(device), batch["label"].to(device)
        output = model(images, scales=scale)
        features, inner = model.enlarged_features_with_inner(
            images, output, scale=scale, factor=config.enlarge
        )
        return descriptor_sums(inner, response_map(features, weight=weight, labels=labels))

    own: list[DescriptorSums] = []  # at most one: a process may have had no photos
    for parts in _in_parts(batches, add_up, config.enlarge, after_batch):
        own = [functools.reduce(DescriptorSums.plus, own + parts)]
    everyones = world.gather([sums.cpu() for sums in own])
    return common_part(functools.reduce(DescriptorSums.plus, everyones))


@torch.no_grad()
def read_boxes(
    model: RACNN,
    batches: Iterable[dict[str, Tensor]],
    scale: int,
    config: PhaseConfig,
    *,
    common: CommonPart | None = None,
    device: torch.device,
    world: ProcessGroup = ALONE,
    after_batch: Callable[[], None] = lambda: None,
) -> Tensor:
    """Return the box that a scale's response shows of each photo.

    Args:
        model: Put into evaluation mode.
        batches: Of photos without random changes, from :func:`racnn.data.eval_loader`.
        scale: Whose response is read, counted from 1.
        config: The phase, which says how.
        common: From :func:`find_common_part`, needed for ``response: ddt``.
        device: Where the network is.
        world: The processes that share the batches; all of them return the boxes of all photos.
        after_batch: Called after each batch; it may raise to stop.

    Returns:
        [N, 4] float32 on the CPU, (x0, y0, x1, y1) in the frame of the source; with ``target: peak`` a point, whose
        two corners are the same.
    """
    model.eval()
    weight = model.classifiers[scale - 1].get_parameter("weight") if config.response == "cam" else None

    def read(batch: dict[str, Tensor]) -> Tensor:
        images, labels = batch["image"].to(device), batch["label"].to(device)
        output = model(images, scales=scale)
        if config.response == "ddt":
            assert common is not None
            _, inner = model.enlarged_features_with_inner(images, output, scale=scale, factor=config.enlarge)
            response = common.response(inner)
        else:
            features = model.enlarged_features(images, output, scale=scale, factor=config.enlarge)
            response = response_map(features, weight=weight, labels=labels)
        if config.target == "peak":
            box = peak_point(response).repeat(1, 2)
        else:
            box = component_box(response, config.level, config.trim)
        place = output.places[scale - 1]
        return (place[:, :2].repeat(1, 2) + place[:, 2:] * box).float().cpu()

    boxes = [torch.cat(parts) for parts in _in_parts(batches, read, config.enlarge, after_batch)]
    return torch.cat(world.gather(boxes))


@torch.no_grad()
def read_places(
    model: RACNN,
    batches: Iterable[dict[str, Tensor]],
    scale: int,
    config: PhaseConfig,
    *,
    device: torch.device,
    world: ProcessGroup = ALONE,
    after_batch: Callable[[], None] = lambda: None,
) -> Tensor:
    """Return where the coarser scales let a scale look at each photo.

    Args:
        model: Put into evaluation mode.
        batches: Of photos without random changes, as in :func:`read_boxes`, like the other arguments.
        scale: That looks, counted from 1; at least 2.

    Returns:
        [N, 4] float32 on the CPU, (x0, y0, x1, y1) in the frame of the source.
    """
    model.eval()

    def read(batch: dict[str, Tensor]) -> Tensor:
        output = model(batch["image"].to(device), scales=scale - 1, propose=True)
        place = output.places[-1]
        return torch.cat([place[:, :2] - place[:, 2:], place[:, :2] + place[:, 2:]], dim=1).float().cpu()

    boxes = [torch.cat(parts) for parts in _in_parts(batches, read, 1.0, after_batch)]
    return torch.cat(world.gather(boxes))


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


def target_region(box: Tensor, place: Tensor, target: str) -> Tensor:
    """Return the region that an APN should propose, in the frame of its view.

    Args:
        box: [B, 4] as :func:`read_boxes` returns them, moved with the photo's random changes.
        place: [B, 3] of the view in the source.
        target: 'component': the bounding square of what the view shows of the box. 'peak': the paper's square of half
            the view's side around the point.

    Returns:
        [B, 3] regions inside the view.
    """
    inside = (box - place[:, :2].repeat(1, 2)) / place[:, 2:]
    if target == "peak":
        return peak_region(inside[:, :2])
    return bounding_region(inside.clamp(-1.0, 1.0))


def attach_pseudo_boxes(run: Run, phase: Phase) -> None:
    """Let the photos of a phase carry their pseudo_boxes, where it has any. A phase that is taken up again reads the same.

    Raises:
        Stop: The run was told to stop.
    """
    photos = phase.config.photos
    if phase.looks_alone() and run.model.zoom_from == "source":
        places = _read(run, phase, "where to look", photos, read_places)
        run.data.splits[photos].pseudo_boxes = places.numpy()
    if phase.config.kind != "apn_init":
        return
    common = None
    if phase.config.response == "ddt":
        if not run.model.backbone(phase.scales[0]).inner:
            run.logger.log(
                f"{phase.name}: no block before the last one of this backbone is known, so that response: ddt reads the last "
                "map, which may tell the object less well; tools/teacher.py compares it with sum and cam"
            )
        common = _read(run, phase, "what photos have in common", photos, find_common_part)
    for split in (photos, "val"):
        boxes = _read(run, phase, "reading boxes", split, read_boxes, common=common)
        run.data.splits[split].pseudo_boxes = boxes.numpy()


def detach_pseudo_boxes(run: Run) -> None:
    """Let no photo carry a pseudo_box."""
    for photos in run.data.splits.values():
        photos.pseudo_boxes = None


def _read(run: Run, phase: Phase, what: str, split: str, reader: Callable[..., T], **settings: Any) -> T:
    """Return what a reader finds in the photos of a split, showing how far it is."""

    def after_batch() -> None:
        run.logger.tick()
        if run.world.size == 1:  # several stop together, after the last batch
            _stop_if_told(run)

    batches = run.validation.batches(split)
    run.logger.start_bar(f"{phase.name}: {what}, {split}", len(batches), 0)
    found = reader(
        run.model,
        batches,
        phase.scales[0],
        phase.config,
        device=run.device,
        world=run.world,
        after_batch=after_batch,
        **settings,
    )
    run.logger.close_bar()
    _stop_if_told(run)
    return found


def _stop_if_told(run: Run) -> None:
    """Stop with a checkpoint to go on from, if the run was told to."""
    if run.stopped():
        if not (run.folder / "last.pt").exists():
            run.save_last(None)
        run.stop()
