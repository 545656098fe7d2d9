"""Four ways for the ranking loss to reach a region.

``exact``      the derivative through the frozen finer scale, the sample points and the mask.
``mask``       the same with the sample points held: the paper's equations 11 to 13, taken at their word.
``energy``     what the public implementations take from those equations: the square of the derivative that reaches the
               view says where the view matters, and the box moves to hold more of it. A larger box always holds more,
               so it is expected to grow to its bound: here to compare with, not to train with.
``smoothed``   the slope of the finer scale's true_class_prob between regions drawn on both sides of the proposal. A pooling
               network's answer flickers as its input shifts by fractions of a pixel, so that its derivative tells
               little about a move that matters; a difference over a tenth of the region is less noisy.

The loss is the same in all of them; what differs is its gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from racnn.models.phase import Batch
from racnn.models.racnn import losses
from racnn.models.racnn.model import RACNN, RACNNOutput
from racnn.ops.crop import zoom
from racnn.ops.mask import frame_steepness
from racnn.ops.regions import clamp, halves

if TYPE_CHECKING:
    from racnn.models.racnn.phases import Ranking


def through_the_view(model: RACNN, batch: Batch, phase: Ranking) -> dict[str, Tensor]:
    """``exact`` and ``mask``: the gradient runs through the frozen finer scale into the zoom and the APN."""
    exact = phase.gradient == "exact"
    output = model(batch["image"], num_scales=max(phase.scales) + 1, move_samples=exact)
    return _losses(output, batch, phase)


def by_energy(model: RACNN, batch: Batch, phase: Ranking) -> dict[str, Tensor]:
    """``energy``: each region is drawn over the pixels of its view that the loss depends on most.

    The energy of a view sums to 1, in place of the constants in pixels of the published layer.
    """
    output = model(batch["image"], num_scales=max(phase.scales) + 1)
    value = _losses(output, batch, phase)
    views = [output.views[s] for s in phase.scales]
    gradients = torch.autograd.grad(value["loss"], views)
    pulls = []
    for s, gradient in zip(phase.scales, gradients, strict=True):
        energy = gradient.float().square().sum(dim=1, keepdim=True)  # [B, 1, h, w]
        energy = energy / energy.sum(dim=(1, 2, 3), keepdim=True).clamp(min=1e-30)
        steepness = frame_steepness(model.steepness, output.views[s - 1].shape[-1])
        held = energy * mask_over_view(output.proposals[s - 1], gradient.shape[-1], steepness)
        pulls.append(-held.sum(dim=(1, 2, 3)).mean())
    return _with_gradient(value, pulls, phase)


def by_smoothing(model: RACNN, batch: Batch, phase: Ranking) -> dict[str, Tensor]:
    """``smoothed``: the hinge falls along the slope that pairs of drawn regions show."""
    labels = batch["label"]
    with torch.no_grad():
        source = model.normalise(batch["image"])
        output = model(batch["image"], num_scales=max(phase.scales) + 1)
        value = _losses(output, batch, phase)
        true_probs = [losses.true_class_prob(logits, labels, phase.compare) for logits in output.logits]
    signs = torch.where(batch["noise"] < 0.5, -1.0, 1.0).unflatten(1, (len(phase.scales), phase.pairs, 3))
    pulls = []
    for i, s in enumerate(phase.scales):
        reads = output.scales[0 if model.parallel else s - 1]
        proposal = model.apns[s - 1](reads.features)  # again, with a gradient

        def score(other: Tensor, scale: int = s) -> Tensor:
            logits = model.classify_proposal(scale + 1, source, output.scales[scale - 1], other)
            return losses.true_class_prob(logits, labels, phase.compare)

        slope = antithetic_slope(
            score, proposal.detach(), signs[:, i], spread=phase.spread, bounds=model.bounds[s - 1]
        )
        active = (true_probs[s - 1] - true_probs[s] + phase.margin > 0).float()
        pulls.append(-(active * (slope * proposal).sum(dim=1)).mean())
    return _with_gradient(value, pulls, phase)


@torch.no_grad()
def antithetic_slope(
    score: Callable[[Tensor], Tensor],
    region: Tensor,
    signs: Tensor,
    *,
    spread: float,
    bounds: tuple[float, float],
) -> Tensor:
    """Estimate the slope of a score by moving all coordinates of a region at once, to both sides.

    Simultaneous perturbation (Spall 1992): each coordinate moves by plus or minus ``spread * tl``, so that the two ends
    are ``spread`` of the region's side apart. The score's difference is divided by the coordinate's own, and the pairs
    are averaged.

    Where a side is at its bound or a box at the image's edge, an end is moved back inside: the slope then counts the
    move that was made, and a coordinate that could not move has none.

    Args:
        score: From regions [B, 3] to [B].
        region: [B, 3], or [B, 4], whose second side moves by the product of the signs: independent of each of them.
        signs: [B, pairs, 3], drawn from -1 and 1.
        spread: Distance of the ends as a share of the region's side.
        bounds: Least and largest side of a region.

    Returns:
        [B, 3] slope of the score in (tx, ty, tl), or [B, 4].
    """
    step = (
        spread * halves(region).repeat(1, 2)[:, : region.shape[1]]
    )  # each coordinate by the side it lies along
    if region.shape[1] == 4:
        signs = torch.cat([signs, signs.prod(dim=2, keepdim=True)], dim=2)
    slope = torch.zeros_like(region)
    for sign in signs.unbind(dim=1):
        ahead, behind = clamp(region + sign * step, *bounds), clamp(region - sign * step, *bounds)
        moved = ahead - behind
        far = moved.abs() > 0.5 * step  # a quarter of the distance: less would only enlarge the others' noise
        rise = (score(ahead) - score(behind))[:, None]
        slope += torch.where(far, rise / torch.where(far, moved, 1.0), 0.0)
    return slope / signs.shape[1]


def _losses(output: RACNNOutput, batch: Batch, phase: Ranking) -> dict[str, Tensor]:
    return losses.ranking_losses(
        output.logits,
        batch["label"],
        phase.scales,
        margin=phase.margin,
        compare=phase.compare,
    )


def _with_gradient(value: dict[str, Tensor], pulls: list[Tensor], phase: Ranking) -> dict[str, Tensor]:
    """Return losses of the given values whose gradients are those of the pulls."""
    named = {
        f"ranking_{s}": value[f"ranking_{s}"].detach() + pull - pull.detach()
        for s, pull in zip(phase.scales, pulls, strict=True)
    }
    return named | {"loss": torch.stack(list(named.values())).sum()}


def mask_over_view(region: Tensor, side: int, steepness: float) -> Tensor:
    """Return the soft mask of a region at the sample points of its view, [B, 1, side, side].

    The points stay when the region moves: the derivative is positive in ``tx`` on the right edge, negative on the left.
    """
    ones = torch.ones(len(region), 1, 2, 2, device=region.device)
    return zoom(ones, region, (side, side), steepness=steepness, move_samples=False)


GRADIENTS: dict[str, Callable[[RACNN, Batch, Any], dict[str, Tensor]]] = {
    "exact": through_the_view,
    "mask": through_the_view,
    "energy": by_energy,
    "smoothed": by_smoothing,
}
