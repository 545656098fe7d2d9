"""Confident early exit: a photo goes to a finer scale only if the coarser ones are not confident.

Convention
    Depth d is the number of scales that a photo was run through. Its answer before the last depth is a pool of the
    scales' logits, weighted on validation photos (:mod:`racnn.models.calibration`) so that its probabilities are calibrated;
    at the last depth it is the answer of the full recursion. A photo stops at the first depth whose highest
    probability reaches the threshold. Costs are shares of the full recursion's multiplications; a scale's include
    its APN's, which proposes whether or not anything is cropped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from racnn.errors import CheckpointError, ConfigError
from racnn.models.calibration import pool_weights
from racnn.models.cost import multiplications
from racnn.models.family import StepByStep, combined_log_probs

CURVE_POINTS = 11
MOST_CANDIDATES = 2000
CANDIDATES = tuple(step / 100 for step in range(99, 29, -1))  # thresholds to choose from by belief
NEVER = 2.0  # a threshold that no probability reaches


@dataclass(frozen=True)
class EarlyExit:
    """When to stop.

    Attributes:
        network: Digest of the weights that it was calibrated for.
        threshold: Least probability to stop at.
        pools: Per depth before the last, the weights of the logits of its scales.
        costs: Per scale; they sum to 1.
        later: Least probability to stop at from depth 2 on; None: the same.
        on_validation: Whether training chose it by validation photos, because its network had learnt the others.
    """

    network: str
    threshold: float
    pools: tuple[tuple[float, ...], ...]
    costs: tuple[float, ...]
    later: float | None = None
    on_validation: bool = False

    def at(self, depth: int) -> float:
        """Return the least probability to stop at, at a depth counted from 1."""
        return self.threshold if depth == 1 or self.later is None else self.later


@dataclass(frozen=True)
class Outcome:
    """What a threshold makes of labelled photos.

    Attributes:
        threshold: Least probability to stop at.
        top1: Share of the photos that are answered right.
        lost: Share that the full recursion answers right, and the depth that they stop at wrong.
        cost: Share of the full recursion's multiplications.
        stopped: Per depth, the share that stops there.
        later: See :class:`EarlyExit`.
    """

    threshold: float
    top1: float
    lost: float
    cost: float
    stopped: tuple[float, ...]
    later: float | None = None


def calibrate(
    logits: Sequence[Tensor],
    fused: Tensor | None,
    labels: Tensor,
    costs: Sequence[float],
    *,
    network: str,
    tolerance: float = 0.0,
) -> tuple[EarlyExit, list[Outcome]]:
    """Choose the pools and the threshold on validation photos.

    The threshold is lowered from 1 for as long as no more than ``tolerance`` of the photos is lost that the full
    recursion answers right. Photos that an early answer wins do not make up for lost ones: there are few photos for
    validation, and how many are won by chance differs from one set of photos to the next.

    Args:
        logits: [N, C] per scale, on photos that the network was not trained on.
        fused: [N, C] of the fusion layer, or None.
        labels: [N].
        costs: From :func:`scale_costs`.
        network: Digest of the weights.
        tolerance: Share of the photos.

    Returns:
        The choice, and what thresholds between never and always stopping at scale 1 make of the same photos.
    """
    depths = len(logits)
    pools = tuple(tuple(pool_weights(logits[:depth], labels)) for depth in range(1, depths))
    answers = answers_by_depth(logits, fused, pools)
    confidences, right = _judged(answers, labels)
    candidates = [NEVER, *confidences[:-1].unique().flip(0).tolist()]
    some = max(1, len(candidates) // MOST_CANDIDATES)
    outcomes = [
        _outcome(confidences, right, threshold, costs)
        for threshold in [*candidates[:-1:some], candidates[-1]]
    ]
    chosen = outcomes[0]
    for each in outcomes:
        if each.lost > tolerance + 1e-9:
            break
        chosen = each
    early = EarlyExit(network, chosen.threshold, pools, tuple(costs))
    steps = [round(i * (len(outcomes) - 1) / (CURVE_POINTS - 1)) for i in range(CURVE_POINTS)]
    return early, [outcomes[i] for i in sorted(set(steps))]


def calibrate_by_belief(
    logits: Sequence[Tensor],
    fused: Tensor,
    labels: Tensor,
    costs: Sequence[float],
    *,
    network: str,
    tolerance: float,
) -> EarlyExit:
    """Choose the pools, and the two thresholds of least cost by which no more than ``tolerance`` of the photos is lost.

    A photo that stops counts as lost by as much as the answer of all looks, which is calibrated, holds its own choice for more
    probable than the one at which it stops. So every photo on which the two differ has a say, whichever was right: counting
    right answers instead, five photos of a thousand decide, and the choice is lost to chance on the next photos.

    Arguments are those of :func:`calibrate`; the photos were answered out of fold.
    """
    pools = tuple(tuple(pool_weights(logits[:depth], labels)) for depth in range(1, len(logits)))
    answers = answers_by_depth(logits, fused, pools)
    confidences, _ = _judged(answers, labels)
    belief = answers[-1].exp()
    regrets = [
        belief.amax(dim=1) - belief.gather(1, x.argmax(dim=1, keepdim=True))[:, 0] for x in answers[:-1]
    ]
    best = EarlyExit(network, NEVER, pools, tuple(costs))
    least = 1.0
    for first in (NEVER, *CANDIDATES):
        for later in (NEVER, *CANDIDATES) if len(logits) > 2 else (NEVER,):
            left = torch.ones(len(labels), dtype=torch.bool)
            regret, cost = 0.0, 0.0
            for depth, each in enumerate(regrets):
                cost += costs[depth] * float(left.float().mean())
                here = left & (confidences[depth] >= (first if depth == 0 else later))
                regret += float(each[here].sum()) / len(labels)
                left = left & ~here
            cost += costs[-1] * float(left.float().mean())
            if regret <= tolerance and cost < least - 1e-9:
                least, best = cost, EarlyExit(network, first, pools, tuple(costs), later=later)
    return best


def answers_by_depth(
    logits: Sequence[Tensor], fused: Tensor | None, pools: Sequence[Sequence[float]]
) -> list[Tensor]:
    """Return the log-probabilities [N, C] that each depth answers with.

    Args:
        logits: [N, C] per scale.
        fused: [N, C] of the fusion layer, or None.
        pools: Weights of the pool at every depth but the last.
    """
    return [*(pooled_answer(logits, weights) for weights in pools), combined_log_probs(logits, fused)]


def pooled_answer(logits: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Return the log-probabilities of the weighted sum of the first scales' logits, one weight a scale."""
    pooled = torch.stack([weight * x.float() for weight, x in zip(weights, logits, strict=False)])
    return pooled.sum(dim=0).log_softmax(dim=1)


def outcome(
    answers: Sequence[Tensor],
    labels: Tensor,
    threshold: float,
    costs: Sequence[float],
    later: float | None = None,
) -> Outcome:
    """Return what thresholds make of photos whose answers at all depths are known."""
    return _outcome(*_judged(answers, labels), threshold, costs, later)


def stops(answers: Sequence[Tensor], early: EarlyExit) -> Tensor:
    """Return after how many looks [N] each photo stops, from the answers of all depths [N, C], see :func:`answers_by_depth`."""
    depths = torch.full((len(answers[0]),), len(answers))
    for depth in range(len(answers) - 1, 0, -1):
        confident = answers[depth - 1].exp().amax(dim=1) >= early.at(depth)
        depths = torch.where(confident, depth, depths)
    return depths


def _judged(answers: Sequence[Tensor], labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return how confident the answers are, and whether they are right, [depths, N]."""
    confidences = torch.stack([answer.exp().amax(dim=1) for answer in answers])
    return confidences, torch.stack([answer.argmax(dim=1) == labels for answer in answers])


def _outcome(
    confidences: Tensor, right: Tensor, threshold: float, costs: Sequence[float], later: float | None = None
) -> Outcome:
    depths, num = confidences.shape
    left = torch.ones(num, dtype=torch.bool)
    hits, lost, cost, stopped = 0, 0, 0.0, []
    for depth in range(depths):
        cost += costs[depth] * int(left.sum())
        least = threshold if depth == 0 or later is None else later
        confident = confidences[depth] >= least if depth < depths - 1 else torch.ones_like(left)
        here = left & confident
        hits += int(right[depth][here].sum())
        lost += int((right[-1] & ~right[depth])[here].sum())
        stopped.append(int(here.sum()) / num)
        left = left & ~confident
    return Outcome(threshold, hits / num, lost / num, cost / num, tuple(stopped), later)


@torch.no_grad()
def look_until_confident(
    model: StepByStep, images: Tensor, early: EarlyExit | None, *, scales: int, fused: bool
) -> list[tuple[Tensor, Tensor, list[Tensor]]]:
    """Run the recursion on each image only as far as it needs, or, without a choice when to stop, on all of them.

    Args:
        model: In evaluation mode.
        images: [B, 3, H, W].
        early: When to stop.
        scales: How many are trained.
        fused: Whether the fusion layer is.

    Returns:
        Per depth that some images stopped at: their indices [K], log-probabilities [K, C], and the regions [K, 3] of
        their views, one a scale.
    """
    source = model.normalise(images)
    index = torch.arange(len(images), device=images.device)
    looks: list[Any] = []
    stopped = []
    for scale in range(1, scales + 1):
        looks.append(model.look(source, looks))
        output = model.output(looks)
        if scale == scales:
            together = combined_log_probs(output.logits, output.fused if fused else None)
            stopped.append((index, together, output.regions))
            break
        if early is not None:
            pooled = pooled_answer(output.logits, early.pools[scale - 1])
            confident = pooled.exp().amax(dim=1) >= early.at(scale)
            done, left = confident.nonzero()[:, 0], (~confident).nonzero()[:, 0]
            if len(done):
                stopped.append((index[done], pooled[done], [region[done] for region in output.regions]))
                source, index = source[left], index[left]
                looks = [_select(each, left) for each in looks]
            if not len(index):
                break
    return stopped


def _select(look: Any, index: Tensor) -> Any:
    """Return a look at the images with indices [K]; its fields are tensors, tuples of them, or None."""

    def chosen(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(chosen, value))
        return None if value is None else value[index]

    return replace(look, **{field.name: chosen(getattr(look, field.name)) for field in fields(look)})


@torch.no_grad()
def scale_costs(model: Any, *, source_size: int, scales: int) -> list[float]:
    """Return each scale's share of the multiplications of the recursion over so many scales."""
    source = model.normalise(model.mean.new_zeros(1, 3, source_size, source_size))
    model.eval()
    before: list[Any] = []
    counts = [multiplications(lambda: before.append(model.look(source, before))) for _ in range(scales)]
    return [count / sum(counts) for count in counts]


def early_exit_file(checkpoint: Path) -> Path:
    """Return where the choice for a checkpoint is kept."""
    return checkpoint.with_suffix(".early_exit.json")


def load_early_exit(checkpoint: Path, network: str) -> EarlyExit:
    """Read the choice that ``racnn evaluate --early-exit`` left beside a checkpoint.

    Raises:
        ConfigError: There is none, it is damaged, or it belongs to another checkpoint.
    """
    file = early_exit_file(checkpoint)
    again = f"`racnn evaluate {checkpoint} --early-exit` makes it"
    if not file.is_file():
        raise ConfigError(f"--early-exit: {file}: no such file; {again}")
    try:
        early = TypeAdapter(EarlyExit).validate_json(file.read_bytes())
    except ValidationError:
        raise ConfigError(f"--early-exit: {file}: damaged; {again}") from None
    if [len(pool) for pool in early.pools] != list(range(1, len(early.costs))):
        raise ConfigError(f"--early-exit: {file}: damaged; {again}")
    if early.network != network:
        raise ConfigError(f"--early-exit: {file} was made for other weights; {again} anew")
    return early


def stored_early_exit(values: Mapping[str, Any] | None, network: str, *, path: Path) -> EarlyExit | None:
    """Return the choice that a checkpoint brings along, if it was made for its weights.

    Raises:
        CheckpointError: It is none.
    """
    if values is None:
        return None
    try:
        early = TypeAdapter(EarlyExit).validate_python(values)
    except ValidationError:
        raise CheckpointError(f"{path}: early_exit: not a choice of when to stop looking") from None
    if [len(pool) for pool in early.pools] != list(range(1, len(early.costs))):
        raise CheckpointError(f"{path}: early_exit: not a choice of when to stop looking")
    return early if early.network == network else None


def format_early_exit(report: Mapping[str, Any]) -> str:
    """Return the ``early_exit`` of a report as plain text: the curve on the validation photos, and the choice."""
    result = report["early_exit"]
    head = "threshold  top-1 %  lost %  cost %  stopped after 1, 2, ... looks %"
    full = report["top1"]["fused" if "fused" in report["top1"] else "mean"]
    chosen = f"on {report['split']} photos (all looks at every photo: {100 * full:.2f}):"
    if not result["val_curve"]:
        by = "validation photos" if result["choice"].get("on_validation") else "answers out of fold"
        return "\n".join([f"early exit, chosen in training by {by}, {chosen}", head, _line(result)])
    lines = ["early exit, validation photos:", head, *(_line(each) for each in result["val_curve"])]
    return "\n".join([*lines, f"chosen there, {chosen}", _line(result)])


def _line(outcome_: Mapping[str, Any]) -> str:
    values = [outcome_["threshold"], outcome_.get("later")]
    threshold = "/".join("none" if value > 1.0 else f"{value:.3g}" for value in values if value is not None)
    if values[1] is None and values[0] <= 1.0:
        threshold = f"{values[0]:.3f}"
    stopped = "  ".join(f"{100 * share:5.1f}" for share in outcome_["stopped"])
    return f"{threshold:>9}  {100 * outcome_['top1']:7.2f}  {100 * outcome_['lost']:6.2f}  {100 * outcome_['cost']:6.1f}  {stopped}"
