"""Places that a network's own evidence shows, by which its location network is taught before it learns by trial.

Hard attention that starts anywhere earns nothing by most of its draws. RA-CNN's proposal networks start from where a photo responds
(:mod:`racnn.models.racnn.pseudo_boxes`); here the same is done for a network that glimpses: what each cell of the map of the
whole photo adds to the true class, as far as the answer after look 1 can tell (Grad-CAM: Selvaraju et al., ICCV 2017, equation 1, with the slope of
the true class against the mean of all), and each glimpse where most of it lies that no glimpse has seen yet.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from racnn.models.recurrent.network import Recurrent
from racnn.ops.regions import whole

CANDIDATES = 9  # places a side that are weighed where a network's glimpses go anywhere


def evidence(model: Recurrent, features: Tensor, coarse: Tensor, labels: Tensor) -> Tensor:
    """Return what each cell of the whole photo's map adds to the true class, where that is positive, [B, m, m], held.

    Args:
        model: Whose answer after look 1 is asked.
        features: [B, D], what was read of the whole.
        coarse: [B, D, m, m], its map.
        labels: [B].
    """
    features = features.detach().requires_grad_()
    with torch.enable_grad():
        region = whole(len(features), device=features.device).to(features)
        state = model.remembered(features, region, model.start(features))
        logits = model.classifier(model.memory.reads(state)).float()
        contrast = logits.gather(1, labels[:, None])[:, 0] - logits.mean(dim=1)
        (slope,) = torch.autograd.grad(contrast.sum(), features)
    return F.relu(torch.einsum("bc,bchw->bhw", slope.float(), coarse.detach().float()))


def taught_places(evidence: Tensor, num: int, *, side: float, grid: int = 0) -> list[Tensor]:
    """Return where so many glimpses in turn see most evidence that none before has seen, [B, 2] each.

    Args:
        evidence: [B, m, m], at least 0.
        num: Of glimpses.
        side: Of a glimpse.
        grid: Places a side that are weighed; 0: :data:`CANDIDATES`.
    """
    covered = covered_share(grid or CANDIDATES, evidence.shape[-1], side).to(evidence)  # [g, m]
    steps = torch.linspace(-1.0, 1.0, len(covered), device=evidence.device)
    found = []
    for _ in range(num):
        seen = covered @ evidence @ covered.T  # [B, g, g]
        best = seen.flatten(1).argmax(dim=1)
        row, column = best // len(steps), best % len(steps)
        found.append(torch.stack([steps[column], steps[row]], dim=1))
        evidence = evidence * (1.0 - covered[row][:, :, None] * covered[column][:, None, :])
    return found


def covered_share(grid: int, num: int, side: float) -> Tensor:
    """Return which share of each of ``num`` cells an axis a glimpse of a side covers at each place of a grid, [grid, num]."""
    middle = (1.0 - side) * torch.linspace(-1.0, 1.0, grid)[:, None]
    edge = torch.linspace(-1.0, 1.0, num + 1)
    low, high = edge[:-1].maximum(middle - side), edge[1:].minimum(middle + side)
    return (high - low).clamp_min(0.0) * (num / 2.0)
