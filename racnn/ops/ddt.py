"""Which direction in a map's cells tells the object from the rest: what photos have in common, or where their classes show.

Deep descriptor transforming finds the first.

Wei, Zhang, Wu, Shen, Zhou, "Unsupervised Object Discovery and Co-Localization by Deep Descriptor Transforming", Pattern
Recognition 88, 2019: the cells of the feature maps of all photos are descriptors, and the first principal component of
them all separates what recurs, the object, from what does not. We differ in two ways. Descriptors are scaled to length 1,
so that a few strong cells do not decide. And the sign of a principal component being arbitrary, it is chosen so that the
cells in which a trained classifier sees the true class are positive.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

SHRINKAGE = 0.1
ROUNDS = 2


class CommonPart(NamedTuple):
    """A direction that tells an object: mean [C] of the descriptors, direction [C] of length 1."""

    mean: Tensor
    direction: Tensor

    def response(self, features: Tensor) -> Tensor:
        """Return where photos show it, [B, h, w] float32, zero where they do not, of features [B, C, h, w]."""
        descriptors = F.normalize(features.detach().float(), dim=1)
        offset = (self.mean @ self.direction).to(descriptors)
        along = torch.einsum("bchw,c->bhw", descriptors, self.direction.to(descriptors))
        return F.relu(along - offset)


class DescriptorSums(NamedTuple):
    """Sums over cells, from which :func:`common_part` is found; those of several batches or processes add up."""

    cells: Tensor  # [] how many
    first: Tensor  # [C] of the descriptors
    second: Tensor  # [C, C] of their products with one another
    seen: Tensor  # [] of the class activations
    with_seen: Tensor  # [C] of the descriptors times the class activations

    def plus(self, other: DescriptorSums) -> DescriptorSums:
        """Return the sums over the cells of both."""
        return DescriptorSums(*(a + b for a, b in zip(self, other, strict=True)))

    def cpu(self) -> DescriptorSums:
        """Return the same on the CPU."""
        return DescriptorSums(*(value.cpu() for value in self))


def descriptor_sums(features: Tensor, activation: Tensor) -> DescriptorSums:
    """Return the sums of some photos, float64.

    Args:
        features: [B, C, h, w] whose cells are the descriptors.
        activation: [B, h', w'] class activation of the true class; resized where the two maps differ in size.
    """
    normalized = F.normalize(features.detach().float(), dim=1)
    descriptors = normalized.permute(0, 2, 3, 1).flatten(0, 2)  # [cells, C]
    size = features.shape[-2:]
    if activation.shape[-2:] != size:
        activation = F.interpolate(activation[:, None], size=size, mode="bilinear", antialias=True)[:, 0]
    seen = activation.detach().float().flatten()
    return DescriptorSums(
        cells=torch.full((), len(seen), dtype=torch.float64, device=seen.device),
        first=descriptors.sum(dim=0).double(),
        second=(descriptors.T @ descriptors).double(),
        seen=seen.sum().double(),
        with_seen=(descriptors.T @ seen).double(),
    )


def evident_part(features: Tensor, activation: Tensor) -> CommonPart:
    """Return the direction that best tells the cells in which a classifier sees the true class from all cells.

    Fisher's discriminant: the difference of the two means through the inverse of the covariance of all cells, shrunken by
    :data:`SHRINKAGE` of its mean variance. It is taken again :data:`ROUNDS` times, with its own response in the place of the
    activation: so it comes to tell all of the object, not only what tells its class. Ours; for objects so small that what
    photos have in common is their surroundings.

    Args:
        features: [B, C, h, w], as in :func:`descriptor_sums`, like the activation.
        activation: [B, h', w'].
    """
    for again in range(ROUNDS + 1):
        cells, first, second, seen, with_seen = descriptor_sums(features, activation).cpu()
        mean = first / cells
        covariance = second / cells - torch.outer(mean, mean)
        covariance.diagonal().add_(SHRINKAGE * covariance.diagonal().mean() + 1e-12)
        difference = with_seen / seen.clamp(min=1e-12) - mean * (seen > 0)
        direction = torch.linalg.solve(covariance, difference)
        part = CommonPart(mean, direction / direction.norm().clamp(min=1e-12))
        if again < ROUNDS:
            response = part.response(features)
            activation = response / response.amax(dim=(1, 2), keepdim=True).clamp(min=1e-12)
    return part


def common_part(sums: DescriptorSums) -> CommonPart:
    """Return the first principal component of all descriptors, positive where classifiers see the true class."""
    cells, first, second, seen, with_seen = sums.cpu()
    mean = first / cells
    covariance = second / cells - torch.outer(mean, mean)
    direction = torch.linalg.eigh(covariance).eigenvectors[:, -1]
    agreement = direction @ (with_seen / cells - mean * (seen / cells))
    return CommonPart(mean, direction if agreement >= 0.0 else -direction)
