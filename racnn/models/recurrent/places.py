"""Places that a network's own evidence shows, by which its location network is taught before it learns by trial.

Hard attention that starts anywhere earns nothing by most of its draws. RA-CNN's proposal networks start from where a photo responds
(:mod:`racnn.models.racnn.pseudo_boxes`); here the same is done for a network that glimpses: what each cell of the map of the
whole photo adds to the true class, as far as the answer after look 1 can tell (Grad-CAM: Selvaraju et al., ICCV 2017, equation 1, with the slope of
the true class against the mean of all), and each glimpse where most of it lies that no glimpse has seen yet.
"""

from __future__ import annotations

import torch
from torch import Tensor

from racnn.models.recurrent.network import Recurrent, cell_middles
from racnn.ops.heatmap import evidence_map
from racnn.ops.regions import whole

FLOOR = 0.01  # of the mean size of a photo's features
LEAST = 0.02  # of a photo's evidence; if less is left there is nothing to be taught
NEARER = 1e-3  # share of the evidence that a place may see less for each unit, squared, that it is nearer
CANDIDATES = 9  # places a side that are weighed where a network's glimpses go anywhere


def evidence(model: Recurrent, features: Tensor, coarse: Tensor, labels: Tensor) -> Tensor:
    """Return what each cell of the whole photo's map adds to the true class, where that is positive, [B, m, m], held.

    Args:
        model: The network; its answer after look 1 is asked.
        features: [B, D], what was read of the whole.
        coarse: [B, D, m, m], its map.
        labels: [B].
    """
    size = features.detach().abs()
    size = size.maximum(
        FLOOR * size.mean(dim=1, keepdim=True)
    )  # the root of what is nearly 0 is too steep to say anything
    features = torch.where(features.detach() < 0.0, -size, size).requires_grad_()
    with torch.enable_grad():
        region = whole(len(features), device=features.device).to(features)
        state = model.remembered(features, region, model.start(features))
        logits = model.classifier(model.memory.reads(state)).float()
        contrast = logits.gather(1, labels[:, None])[:, 0] - logits.mean(dim=1)
        (slope,) = torch.autograd.grad(contrast.sum(), features)
    return evidence_map(coarse.detach(), slope.float())


def taught_places(
    evidence: Tensor, num: int, *, side: float, grid: int = 0
) -> tuple[list[Tensor], list[Tensor]]:
    """Return where so many glimpses in turn see most evidence that none before has seen.

    Of places that see about as much the one is taken that is nearest to the middle of that evidence.

    Args:
        evidence: [B, m, m], at least 0.
        num: Number of glimpses.
        side: Side of a glimpse.
        grid: Places a side that are weighed; 0: :data:`CANDIDATES`.

    Returns:
        The place of each glimpse, [B, 2], and whether there was still something to see there, [B].
    """
    grid, cells = grid or CANDIDATES, evidence.shape[-1]
    covered = covered_share(grid, cells, side, device=evidence.device)
    steps = torch.linspace(-1.0, 1.0, grid, device=evidence.device)
    middles = cell_middles(cells, side).to(evidence.device)
    least = LEAST * evidence.sum(dim=(1, 2)).clamp_min(1e-30)
    places, worth = [], []
    for _ in range(num):
        left = evidence.sum(dim=(1, 2))
        shares = evidence / left.clamp_min(1e-30)[:, None, None]
        x, y = shares.sum(dim=1) @ middles, shares.sum(dim=2) @ middles
        away = (steps[:, None] - y[:, None, None]).square() + (steps - x[:, None, None]).square()
        best = (covered @ shares @ covered.T - NEARER * away).flatten(1).argmax(dim=1)
        row, column = best // grid, best % grid
        places.append(torch.stack([steps[column], steps[row]], dim=1))
        worth.append(left > least)
        rest = 1.0 - covered[row][:, :, None] * covered[column][:, None, :]
        evidence = evidence * rest.clamp_min(0.0)
    return places, worth


def covered_share(grid: int, num: int, side: float, *, device: torch.device | None = None) -> Tensor:
    """Return which share of each of ``num`` cells an axis a glimpse of a side covers at each place of a grid, [grid, num]."""
    middle = (1.0 - side) * torch.linspace(-1.0, 1.0, grid, device=device)[:, None]
    edge = torch.linspace(-1.0, 1.0, num + 1, device=device)
    low, high = edge[:-1].maximum(middle - side), edge[1:].minimum(middle + side)
    return ((high - low) * (num / 2.0)).clamp(0.0, 1.0)
