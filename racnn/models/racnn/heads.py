"""Linear heads in closed form: discriminant analysis of descriptors, its strength and temperature chosen by folds.

Fisher's linear discriminant with a shrunken covariance (Friedman, "Regularized Discriminant Analysis", JASA 84, 1989): the
classes are normal distributions of one covariance, the covariance within classes pulled towards a multiple of the identity.
With some twenty photos a class it answered better than logistic regression (docs/experiments.md), it has no steps to choose
or to end too early, and one photo a class is enough. Classes count the same however many photos they have.

Convention
    Photos are dealt into folds within each class, in order and in blocks: bursts are next to each other, and a photo is not
    to be answered by a head that has seen the shot before it. Out of fold: by the head fitted on all other folds.
    Everything is computed on the CPU in float64, so that the same descriptors give the same head on every device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from scipy.optimize import minimize_scalar
from torch import Tensor

STRENGTHS = (0.1, 0.3, 1.0, 3.0, 10.0)  # of the shrinkage, in units of the mean variance of a channel
USUAL = 1.0  # where there are too few photos to choose by
NUM_FOLDS = 5
ROWS = 4096  # of descriptors at a time
GUESSED_MARGIN = (
    2.0  # mean distance of logits to the next class, where one photo a class tells no temperature
)
UNSEEN = -1e4  # logit of a class of which a fold's head has seen no photo


@dataclass(frozen=True)
class Head:
    """A linear classifier, and what its photos were answered out of fold.

    Attributes:
        weight: [C, D] float32, temperature folded in, like the bias.
        bias: [C] float32.
        strength: How strong the shrinkage is.
        folds: [N], which fold each photo is in.
        slope: The inverse temperature that is folded in.
        fold_weights: [K, C, D] float32, of the heads fitted without the photos of each fold.
        fold_biases: [K, C] float32, likewise.
        answers: [N, C] float32, logits of every photo by the head that has not seen it.
        answered: [N], whether that head has seen its class; all figures by folds are of these photos.
    """

    weight: Tensor
    bias: Tensor
    strength: float
    slope: float
    folds: Tensor
    fold_weights: Tensor
    fold_biases: Tensor
    answers: Tensor
    answered: Tensor


def fit_head(
    descriptors: Tensor,
    labels: Tensor,
    num_classes: int,
    *,
    strengths: Sequence[float] = STRENGTHS,
    folds: Tensor | None = None,
) -> Head:
    """Return the head of the strength whose answers out of fold, at their best temperature, are the most probable.

    Args:
        descriptors: [N, D].
        labels: [N]; every class has a photo.
        num_classes: C.
        strengths: To choose from.
        folds: [N], where they are not to be dealt by these labels. Groups of classes take those of the classes: dealt by groups, a
            fold would hold all photos of one class, which the others then had to answer without having seen any.
    """
    descriptors, labels = descriptors.cpu(), labels.cpu()
    folds = deal_folds(labels) if folds is None else folds
    sums = [_Sums.of(descriptors[folds == k], labels[folds == k], num_classes) for k in range(NUM_FOLDS)]
    every = _Sums.total(sums)
    answered = every.counts[labels] > torch.stack([s.counts for s in sums])[folds, labels]
    if not answered.any():
        strengths = (USUAL,)
    without = [every.minus(each) for each in sums]
    best: tuple[float, float, float, Tensor] | None = None
    for strength in strengths:
        answers = descriptors.new_zeros(len(labels), num_classes)
        for k, others in enumerate(without):
            if (folds == k).any():
                weight, bias = discriminant(others, strength)
                answers[folds == k] = F.linear(descriptors[folds == k], weight.float(), bias.float())
        slope, loss = best_slope(answers[answered], labels[answered])
        if best is None or loss < best[0]:
            best = loss, strength, slope, answers
    assert best is not None
    _loss, strength, slope, answers = best
    weight, bias = discriminant(every, strength)
    if not answered.any():
        slope = GUESSED_MARGIN / _margin(F.linear(descriptors.double(), weight, bias), labels)
    of_folds = [
        discriminant(others, strength) if others.counts.any() else (weight, bias) for others in without
    ]
    return Head(
        weight=(slope * weight).float(),
        bias=(slope * bias).float(),
        strength=strength,
        slope=slope,
        folds=folds,
        fold_weights=torch.stack([(slope * each).float() for each, _ in of_folds]),
        fold_biases=torch.stack([(slope * each).float() for _, each in of_folds]),
        answers=slope * answers,
        answered=answered,
    )


def _margin(answers: Tensor, labels: Tensor) -> float:
    """Return by how much the logits [N, C] of the labels [N] exceed the highest others, in the mean; positive."""
    own = answers.gather(1, labels[:, None])[:, 0]
    others = answers.scatter(1, labels[:, None], -math.inf).amax(dim=1)
    return max(float((own - others).mean()), 1e-6)


def deal_folds(labels: Tensor, num_folds: int = NUM_FOLDS) -> Tensor:
    """Return the fold [N] of each photo; the photos of a class are shared out evenly, in order.

    Of classes with fewer photos than folds, each begins with another fold.
    """
    folds = torch.zeros_like(labels)
    for label in labels.unique().tolist():
        (where,) = (labels == label).nonzero(as_tuple=True)
        num = len(where)
        folds[where] = (torch.arange(num) * num_folds // max(num, num_folds) + label) % num_folds
    return folds


@dataclass(frozen=True)
class _Sums:
    """What a discriminant needs of some photos; float64. Those of several parts add up."""

    counts: Tensor  # [C] photos
    first: Tensor  # [C, D] sums of the descriptors
    second: Tensor  # [D, D] of their products with one another

    @classmethod
    def of(cls, descriptors: Tensor, labels: Tensor, num_classes: int) -> _Sums:
        width = descriptors.shape[1]
        second = torch.zeros(width, width, dtype=torch.float64)
        first = torch.zeros(num_classes, width, dtype=torch.float64)
        for start in range(0, len(labels), ROWS):
            rows = descriptors[start : start + ROWS].double()
            second += rows.T @ rows
            first.index_add_(0, labels[start : start + ROWS], rows)
        return cls(torch.bincount(labels, minlength=num_classes).double(), first, second)

    @classmethod
    def total(cls, parts: Sequence[_Sums]) -> _Sums:
        counts, first, second = (
            torch.stack([getattr(part, name) for part in parts]).sum(dim=0)
            for name in ("counts", "first", "second")
        )
        return cls(counts, first, second)

    def minus(self, part: _Sums) -> _Sums:
        return _Sums(self.counts - part.counts, self.first - part.first, self.second - part.second)


def discriminant(sums: _Sums, strength: float) -> tuple[Tensor, Tensor]:
    """Return weight [C, D] and bias [C], float64, of the log-densities of the classes but for a common term.

    Args:
        sums: From the photos; a class without any gets the logit :data:`UNSEEN`.
        strength: How many times the mean variance of a channel is added to all variances.
    """
    seen = sums.counts > 0
    means = sums.first / sums.counts.clamp(min=1.0)[:, None]
    centre = means[seen].mean(dim=0) if seen.any() else means[0]
    num = max(float(sums.counts.sum()), 1.0)
    within = (sums.second - (means.T * sums.counts) @ means) / num
    variance = float(within.diagonal().mean())
    spread = float(((means[seen] - centre) ** 2).mean()) if seen.any() else 0.0
    if variance <= 1e-9 * spread:  # one photo a class: only the distance to it counts
        within, variance = torch.zeros_like(within), spread or 1.0
    within.diagonal().add_(strength * variance)
    contrast = torch.where(seen[:, None], means - centre, 0.0)
    weight = torch.cholesky_solve(contrast.T, torch.linalg.cholesky(within)).T
    bias = -(weight @ centre) - (contrast * weight).sum(dim=1) / 2
    return weight, torch.where(seen, bias, UNSEEN)


def best_slope(answers: Tensor, labels: Tensor) -> tuple[float, float]:
    """Return the factor (inverse temperature) of logits [N, C] by which labels [N] are most probable, and the loss there.

    Each photo counts as one part in N + 2 for the nearest other class (Laplace's rule of succession): where all are answered
    right the most probable factor would be infinite, and the first error infinitely surprising.
    """
    if not len(labels):
        return 1.0, math.inf
    answers = answers.double()
    others = answers.scatter(1, labels[:, None], -math.inf).argmax(dim=1)
    doubt = 1.0 / (len(labels) + 2)

    def loss(log_slope: float) -> float:
        scaled = math.exp(log_slope) * answers
        return (
            (1.0 - doubt) * F.cross_entropy(scaled, labels) + doubt * F.cross_entropy(scaled, others)
        ).item()

    found = minimize_scalar(loss, bounds=(-7.0, 7.0), method="bounded", options={"xatol": 1e-4})
    return math.exp(found.x), float(found.fun)
