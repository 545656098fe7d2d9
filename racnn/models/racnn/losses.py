"""Losses: tensors in, a dictionary of named losses out. Logs show them under these names.

Names end in the 1-based scale, or region, they belong to; ``loss`` is the sum that is minimised.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from racnn.ops.heatmap import evidence_map
from racnn.ops.regions import clamp


def classification_losses(
    logits: Mapping[int, Tensor],
    labels: Tensor,
    scales: Sequence[int],
    *,
    label_smoothing: float = 0.0,
    class_weights: Tensor | None = None,
) -> dict[str, Tensor]:
    """Return the intra-scale classification loss of each scale that is trained (first sum of equation 8).

    Args:
        logits: [B, C] by scale, counted from 1; of those that are trained at least.
        labels: [B].
        scales: The scales to train, likewise.
        label_smoothing: Share of the target spread over all classes.
        class_weights: [C] or None. A loss is the mean over photos of the weighted losses, so that the loss of a batch is
            the mean of those of its parts.

    Returns:
        ``classification_s`` per scale and their sum ``loss``.
    """
    losses = {
        f"classification_{scale}": _cross_entropy(logits[scale], labels, class_weights, label_smoothing)
        for scale in scales
    }
    return losses | {"loss": torch.stack(list(losses.values())).sum()}


def localise_losses(
    logits: Sequence[Tensor],
    labels: Tensor,
    regions: Sequence[int],
    *,
    label_smoothing: float = 0.0,
    class_weights: Tensor | None = None,
) -> dict[str, Tensor]:
    """Return for each region the classification loss of the scale that looks at it.

    Args:
        logits: [B, C] per scale.
        labels: [B].
        regions: Those that are trained, counted from 1; scale s + 1 looks at region s.
        label_smoothing: Share of the target spread over all classes.
        class_weights: [C] or None, see :func:`classification_losses`.

    Returns:
        ``localise_s`` per region and their sum ``loss``.
    """
    losses = {
        f"localise_{s}": _cross_entropy(logits[s], labels, class_weights, label_smoothing) for s in regions
    }
    return losses | {"loss": torch.stack(list(losses.values())).sum()}


def ranking_losses(
    logits: Sequence[Tensor],
    labels: Tensor,
    regions: Sequence[int],
    *,
    margin: float = 0.05,
    compare: str = "prob",
) -> dict[str, Tensor]:
    """Return the inter-scale pairwise ranking loss of each pair (equation 9).

    ``max(0, p_t(s) - p_t(s + 1) + margin)`` with the SOFTMAX probability of the true class. The coarser probability
    is a reference and takes no gradient, which the paper does not say: otherwise the loss of pair s would also teach
    APN s - 1 to make scale s worse.

    Args:
        logits: [B, C] per scale.
        labels: [B].
        regions: s for the pairs (s, s + 1), that is for the APNs that are trained, counted from 1.
        margin: By how much the true class should be more probable at the finer scale.
        compare: 'prob', or 'log_prob' for the logarithms, whose slope does not vanish where a probability is near 0 or 1.

    Returns:
        ``ranking_s`` per pair and their sum ``loss``.
    """
    true_probs = [true_class_prob(scale_logits, labels, compare) for scale_logits in logits]
    losses = {
        f"ranking_{s}": F.relu(true_probs[s - 1].detach() - true_probs[s] + margin).mean() for s in regions
    }
    return losses | {"loss": torch.stack(list(losses.values())).sum()}


def true_class_prob(logits: Tensor, labels: Tensor, compare: str = "prob") -> Tensor:
    """Return the softmax probability of the true class, or its logarithm, [B] from logits [B, C]."""
    log_prob = logits.float().log_softmax(dim=1).gather(1, labels[:, None])[:, 0]
    return log_prob if compare == "log_prob" else log_prob.exp()


def response_map(
    features: Tensor,
    *,
    weight: Tensor | None = None,
    labels: Tensor | None = None,
    gain: Tensor | None = None,
) -> Tensor:
    """Return where a scale responds, [B, h, w], float32 and detached.

    Args:
        features: [B, C, h, w].
        weight: [num_classes, C] of the scale's classifier. Given, the map is the class activation of the true class
            against the mean of all classes, its positive part (Zhou et al., "Learning Deep Features for
            Discriminative Localization", CVPR 2016). None sums the channels.
        labels: [B], needed with ``weight``; any class may be asked for, such as the predicted one.
        gain: [B, C], what a channel's mean is multiplied by in the descriptor, see :meth:`RACNN.gain`; None: 1.
    """
    features = features.detach().float()
    if weight is None:
        return features.sum(dim=1)
    assert labels is not None
    contrast = weight.detach()[labels] - weight.detach().mean(dim=0)  # [B, C]
    return evidence_map(features, contrast if gain is None else contrast * gain.detach())


def apn_init_losses(
    region: Tensor, taught: Tensor, number: int, *, bounds: tuple[float, float]
) -> dict[str, Tensor]:
    """Return the loss that teaches an APN a region: smooth L1 in the frame.

    Args:
        region: [B, 3] proposed.
        taught: [B, 3]; it is clamped to what the APN can propose.
        number: Number of the region, counted from 1, for the name.
        bounds: Least and largest side.

    Returns:
        ``apn_init_s`` and the same as ``loss``.
    """
    loss = F.smooth_l1_loss(region, clamp(taught, *bounds), beta=0.1)
    return {f"apn_init_{number}": loss, "loss": loss}


def fusion_losses(fused: Tensor, labels: Tensor, *, class_weights: Tensor | None = None) -> dict[str, Tensor]:
    """Return the cross entropy of the fused logits [B, C] as ``fusion`` and ``loss``."""
    loss = _cross_entropy(fused, labels, class_weights)
    return {"fusion": loss, "loss": loss}


def _cross_entropy(
    logits: Tensor, labels: Tensor, class_weights: Tensor | None, label_smoothing: float = 0.0
) -> Tensor:
    each = F.cross_entropy(
        logits.float(), labels, weight=class_weights, label_smoothing=label_smoothing, reduction="none"
    )
    return each.mean()
