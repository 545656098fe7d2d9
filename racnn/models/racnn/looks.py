"""Frozen looks: every head, region and weight of the recursion fitted in one go on a trunk that stays as loaded.

Each look's descriptors are read once from the training photos, and its classifier is fitted in closed form
(:mod:`racnn.models.racnn.heads`). Region 1 is what the photos have in common, region 2 and on where the evidence for a class
is; which class that is in training, heads decide that have not seen the photo, as it will be in use. The weights of the
fusion and when to stop early are fitted on answers out of fold as well, so that validation photos only report.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from scipy.optimize import minimize_scalar
from torch import Tensor, nn

from racnn.durations import format_duration
from racnn.models.calibration import weights_out_of_fold
from racnn.models.parts import read_rows
from racnn.models.phase import FittedPhase, PhaseContext
from racnn.models.racnn.heads import Head, fit_head
from racnn.models.racnn.level_heads import agree
from racnn.models.racnn.losses import response_map
from racnn.models.racnn.model import RACNN, init_joined
from racnn.ops.ddt import common_part, descriptor_sums, evident_part
from racnn.ops.heatmap import evidence_map
from racnn.ops.regions import compose, rectangle, whole

SAMPLE = 256  # photos, from which is found what they have in common
ENOUGH = 0.75  # of the evidence that regions hold which go by it: what is common does as well, and holds more of an object


class Looks(FittedPhase):
    """Fit classifiers, regions and fusion on a frozen trunk, one look after the other."""

    trains_fusion: ClassVar[bool] = True
    answers_out_of_fold: ClassVar[bool] = True
    fits_levels: ClassVar[bool] = True

    kind: Literal["looks"]
    tolerance: float = Field(
        0.0015, ge=0.0, lt=1.0, description="share of the photos that early exit may lose, judged out of fold"
    )

    def trained(self, model: RACNN) -> tuple[list[nn.Module], list[nn.Module]]:
        levels = [] if model.levels is None else [model.levels]
        return [], [*model.classifiers, *model.apns, model.fusion, *levels]

    def score_names(self, num_scales: int) -> list[str]:
        return ["fused"] if num_scales > 1 else ["scale_1"]

    def num_scales_run(self, num_scales: int) -> int:
        return num_scales

    def num_readings(self, num_scales: int) -> int:
        # one a look, and one for the evidence of each between the first and the last
        return max(1, 2 * num_scales - 2)

    def last_trained_scale(self) -> int:
        return max(self.scales)

    def misfits(self, model: Any) -> list[str]:
        found = super().misfits(model)
        if self.scales:
            found.append("'scales' does nothing in a looks phase, which fits all")
        if model.gates == "sca":
            found.append("a looks phase runs each look alone, and model.gates sca steers by the look before")
        if model.weights is None and model.backbone != "tiny":
            found.append("a looks phase leaves the trunk as loaded, so that it needs model.weights")
        if model.num_scales > 1 and model.apn != "response":
            found.append(f"a looks phase needs model.apn response, which reads its regions, not {model.apn}")
        if model.num_scales > 1 and model.zoom_from != "source":
            found.append(f"a looks phase needs model.zoom_from source, not {model.zoom_from}")
        return found

    def taught_regions(self) -> tuple[int, ...]:
        return self.scales[:-1]

    @property
    def name(self) -> str:
        return f"{self.position + 1:02d}-looks"

    def fit(self, context: PhaseContext) -> None:
        model: RACNN = context.model
        model.round_weights()
        if model.num_scales > 1:
            self.find_object(context)
        looks = list[Look]()
        for scale, look in enumerate(find_looks(context, self.photos), start=1):
            set_values(model.classifiers[scale - 1], weight=look.head.weight, bias=look.head.bias)
            looks.append(look)
            context.log(f"{self.name}: look {scale}, {_shown(look.head, look.labels)}")
        if model.num_scales > 1:
            self._fuse(context, looks)

    def find_object(self, context: PhaseContext) -> None:
        """Set the direction in which cells tell the object: what the photos have in common, or where their classes show."""
        model: RACNN = context.model
        start, num = time.perf_counter(), context.num_photos(self.photos)
        found = context.read("what photos have in common", self.photos, read_sample, most=SAMPLE)
        passes = self.num_readings(model.num_scales)
        seconds = (time.perf_counter() - start) / len(found["labels"]) * num * passes
        size = num * found["descriptors"].shape[1] * 4 * model.num_scales / 1e6
        again = (
            ", once a look and once more for where a class shows in between" if model.num_scales > 2 else ""
        )
        context.log(
            f"{self.name}: {num} photos are read {passes} times{again}: about {format_duration(seconds)} here (measured on "
            f"{len(found['labels'])}); {size:.0f} MB of descriptors are kept in the run's folder"
        )
        context.log(f"{self.name}: {aim(model, found)}")

    def _fuse(self, context: PhaseContext, looks: list[Look]) -> None:
        """Weigh the looks, and choose when a photo needs no further one, by answers out of fold."""
        model: RACNN = context.model
        heads, labels = [look.head for look in looks], looks[0].labels
        weights = weights_out_of_fold(heads, labels)
        known = heads[0].answered
        answers = [head.answers[known] for head in heads]
        norms = [1.0] * len(heads) if model.root else context.descriptor_norms()
        model.init_fusion(norms, weights)
        shown = ", ".join(f"{weight:.2f}" for weight in weights)
        context.log(f"{self.name}: the looks count {shown}")
        fused = torch.stack([w * x for w, x in zip(weights, answers, strict=True)]).sum(dim=0)
        if model.levels is not None:
            fused, said = fit_levels(model, looks, norms, fused)
            context.log(f"{self.name}: {said}")
        if known.any():
            context.choose_early_exit(answers, fused, labels[known], tolerance=self.tolerance)


def fit_levels(
    model: RACNN, looks: Sequence[Look], norms: Sequence[float], fused: Tensor
) -> tuple[Tensor, str]:
    """Set the heads of the coarser levels, and how much they count by answers out of fold.

    Args:
        model: With level heads.
        looks: All of them, at all photos.
        norms: Mean L2 norm of each look's descriptors, which joining divides by.
        fused: [K, C], logits out of fold of the K photos whose class the heads have seen.

    Returns:
        The same in agreement with the levels, and in words what was found.
    """
    levels = model.levels
    assert levels is not None
    known, labels, folds = looks[0].head.answered, looks[0].labels, looks[0].head.folds
    answers, right = list[Tensor](), list[str]()
    for level, groups in enumerate(levels.groups.cpu()):
        of_group = groups[labels]
        heads = [fit_head(look.descriptors, of_group, model.num_classes, folds=folds) for look in looks]
        set_values(levels.whole[level], weight=heads[0].weight, bias=heads[0].bias)
        weights = weights_out_of_fold(heads, of_group)
        init_joined(levels.joined[level], [(head.weight, head.bias) for head in heads], norms, weights)
        every = [w * head.answers[known] for w, head in zip(weights, heads, strict=True)]
        answers.append(torch.stack(every).sum(dim=0))
        right.append(f"{100 * (answers[-1].argmax(dim=1) == of_group[known]).float().mean():.1f}")
    trust = trust_out_of_fold(fused, answers, levels.groups.cpu(), labels[known])
    set_values(levels, trust=torch.tensor(trust))
    shown = ", ".join(
        f"{name} {share} % right and counts {each:.2f}"
        for name, share, each in zip(levels.names, right, trust, strict=True)
    )
    together = agree(fused, answers, levels.groups.cpu(), levels.trust.cpu())
    return together, f"heads of levels that had not seen the photo: {shown}"


def trust_out_of_fold(
    fused: Tensor, answers: Sequence[Tensor], groups: Tensor, labels: Tensor
) -> list[float]:
    """Return how much each level's head counts, so that the labels [K] are the most probable; one level after the other."""
    trust = torch.zeros(len(answers))
    if not len(labels):
        return trust.tolist()
    for level in range(len(answers)):

        def loss(value: float, number: int = level) -> float:
            trust[number] = value
            found = agree(fused, answers[: number + 1], groups, trust)
            return float(F.nll_loss(found.double(), labels))

        best = float(minimize_scalar(loss, bounds=(0.0, 1.0), method="bounded").x)
        trust[level] = min((0.0, best), key=loss)
    return trust.tolist()


@dataclass(frozen=True)
class Look:
    """What a scale makes of each photo, and the head that was fitted to it.

    Attributes:
        region: [N, 3], where it looked; [1, 3] where that is the whole of each photo.
        descriptors: [N, D].
        labels: [N].
        head: From these descriptors and labels.
    """

    region: Tensor
    descriptors: Tensor
    labels: Tensor
    head: Head


def find_looks(context: PhaseContext, photos: str) -> Iterator[Look]:
    """Yield the looks at the photos of a split, coarsest first, each where the one before lets it look.

    Where that depends on what a photo is taken for, by heads that have not seen it.
    """
    model: RACNN = context.model
    region: Tensor | None = None
    first: Head | None = None
    for scale in range(1, model.num_scales + 1):
        found = _read(context, photos, scale, region)
        head = fit_head(found["descriptors"], found["labels"], model.num_classes)
        if first is None:
            first, at_first = head, found
        yield Look(whole(1) if region is None else region, found["descriptors"], found["labels"], head)
        if scale < model.num_scales:
            if "next_region" not in found:
                reads, where, by = (1, None, first) if model.parallel else (scale, region, head)
                if model.parallel and scale > 2:  # of a coarser level
                    assert model.levels is not None
                    groups = model.levels.groups[scale - 3].cpu()
                    of_group = groups[at_first["labels"]]
                    by = fit_head(at_first["descriptors"], of_group, model.num_classes, folds=first.folds)
                contrast = _contrast_out_of_fold(by)
                found = _read(context, photos, reads, where, contrast=contrast, proposes=scale)
            region = found["next_region"]


@torch.no_grad()
def aim(model: RACNN, sample: dict[str, Tensor]) -> str:
    """Set the direction in which cells tell the object, from a sample of :func:`read_sample`; return which, in words."""
    labels, features, inner = sample["labels"], sample["features"], sample["inner"]
    head, gain = fit_head(sample["descriptors"], labels, model.num_classes), model.gain(features)
    seen = response_map(features, weight=head.weight, labels=labels, gain=gain)
    contrast = _contrast_out_of_fold(head, labels)
    evidence = evidence_map(features, contrast if gain is None else contrast * gain)
    evidence = torch.where(head.answered[:, None, None], evidence, seen)  # of a class with one photo
    parts = common_part(descriptor_sums(inner, seen)), evident_part(inner, evidence)
    proposal, held = copy.deepcopy(model.apns[0]).cpu(), list[float]()
    for part in parts:
        set_values(proposal, mean=part.mean.float(), direction=part.direction.float())
        held.append(evidence_held(evidence, proposal(inner)))
    common = held[0] >= ENOUGH * held[1] or held[1] <= 0.0
    part = parts[0 if common else 1]
    set_values(model.apns[0], mean=part.mean.float(), direction=part.direction.float())
    own, other = held if common else held[::-1]
    ways = ("what the photos have in common", "where their classes show")
    return (
        f"region 1 is {ways[not common]}: it holds {100 * own:.0f} points more of what tells the classes apart than of the view "
        f"({ways[common]}: {100 * other:.0f})"
    )


@torch.no_grad()
def read_sample(
    model: RACNN,
    batches: Iterable[dict[str, Tensor]],
    *,
    device: torch.device,
    gather: Callable[[list[Any]], list[Any]] = list,
    after_batch: Callable[[], None] = lambda: None,
) -> dict[str, Tensor]:
    """Return what scale 1 makes of some photos, on the CPU: ``descriptors`` [N, D], ``labels`` [N] and, in bfloat16,
    ``features`` [N, C, h, w] and the ``inner`` map [N, C', h', w'], which boxes are read from."""

    def read(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        source = model.normalise(batch["image"].to(device))
        view = model.crop(1, source, whole(len(source), device=device))
        features, inner = model.extract_with_inner(1, view)
        features = model.weighed(1, features)
        return {
            "descriptors": model.describe(features).cpu(),
            "labels": batch["label"],
            "features": features.bfloat16().cpu(),  # of the range of float32, which some features need
            "inner": inner.bfloat16().cpu(),
        }

    model.eval()
    return read_rows(read, batches, device=device, gather=gather, after_batch=after_batch)


@torch.no_grad()
def read_look(
    model: RACNN,
    batches: Iterable[dict[str, Tensor]],
    scale: int,
    *,
    region: Tensor | None = None,
    contrast: Tensor | None = None,
    proposes: int | None = None,
    device: torch.device,
    gather: Callable[[list[Any]], list[Any]] = list,
    after_batch: Callable[[], None] = lambda: None,
) -> dict[str, Tensor]:
    """Return what a scale makes of each photo, and where it would look next.

    Args:
        model: Put into evaluation mode.
        batches: Batches of photos without random changes, from :func:`racnn.data.eval_loader`.
        scale: Counted from 1.
        region: [N, 3], where it looks; None is the whole photo.
        contrast: [N, D], weights of each photo's channels whose response is the evidence; None: a scale whose proposal
            reads evidence proposes nothing yet.
        proposes: Number of the region that is proposed, counted from 1; None: the next one.
        device: Where the network is.
        gather: Joins the rows of all processes that share the batches.
        after_batch: Called after each batch; it may raise to stop.

    Returns:
        ``labels`` [N], ``descriptors`` [N, D] unless there is a contrast and, where it can be told, ``next_region`` [N, 3] in
        the photo; on the CPU.
    """
    number = scale if proposes is None else proposes
    proposal = model.apns[number - 1] if number < model.num_scales else None
    if model.parallel and scale > 1:  # nothing is proposed from a closer look
        proposal = None

    def read(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        source = model.normalise(batch["image"].to(device))
        own = whole(len(source)) if region is None else region[batch["index"]]
        own = own.to(device)
        view = model.crop(scale, source, own)
        features, inner = model.extract_with_inner(scale, view)
        found = {"labels": batch["label"]}
        weighed = model.weighed(scale, features)
        if contrast is None:
            found["descriptors"] = model.describe(weighed).cpu()
        proposed = None
        if proposal is not None and proposal.reads != "evidence":
            proposed = proposal(inner if proposal.reads == "inner" else features)
        elif proposal is not None and contrast is not None:
            gain = model.gain(weighed)
            weights = contrast[batch["index"]].to(device)
            proposed = proposal(evidence_map(weighed, weights if gain is None else weights * gain))
        return found if proposed is None else found | {"next_region": compose(own, proposed).cpu()}

    model.eval()
    return read_rows(read, batches, device=device, gather=gather, after_batch=after_batch)


def _read(
    context: PhaseContext,
    split: str,
    scale: int,
    region: Tensor | None,
    contrast: Tensor | None = None,
    proposes: int | None = None,
) -> dict[str, Tensor]:
    """Return what :func:`read_look` does of all photos of a split, from the run's folder where it is there already."""
    what = f"look {scale}" if contrast is None else f"where look {scale} sees its class"
    name = f"look_{scale}" if contrast is None else f"evidence_{proposes}"
    return context.remember(
        name,
        [region, contrast],
        lambda: context.read(
            what, split, read_look, scale=scale, region=region, contrast=contrast, proposes=proposes
        ),
    )


def _contrast_out_of_fold(head: Head, classes: Tensor | None = None) -> Tensor:
    """Return the weights [N, D] of classes [N] against the mean of all, of the heads that had not seen each photo.

    Without classes, those that these heads took the photos for.
    """
    weights = head.fold_weights - head.fold_weights.mean(dim=1, keepdim=True)
    return weights[head.folds, head.answers.argmax(dim=1) if classes is None else classes]


def evidence_held(evidence: Tensor, region: Tensor) -> float:
    """Return by how much regions [N, 3] hold more of the evidence [N, h, w] than of their views; the mean over photos."""
    height, width = evidence.shape[1:]
    x, y = ((torch.arange(num) + 0.5) * (2.0 / num) - 1.0 for num in (width, height))
    tx, ty, sx, sy = (value[:, None, None] for value in rectangle(region.cpu()).unbind(dim=1))
    inside = ((x[None, None, :] - tx).abs() <= sx) & ((y[None, :, None] - ty).abs() <= sy)
    share = (evidence * inside).sum(dim=(1, 2)) / evidence.sum(dim=(1, 2)).clamp(min=1e-12)
    return float((share - inside.float().mean(dim=(1, 2))).mean())


@torch.no_grad()
def set_values(module: nn.Module, **values: Tensor) -> None:
    """Fill parameters and buffers of a module."""
    for name, value in values.items():
        getattr(module, name).copy_(value)


def _shown(head: Head, labels: Tensor) -> str:
    if not head.answered.any():
        return "one photo a class: nothing to choose by, its probabilities are guessed"
    right = (head.answers.argmax(dim=1) == labels)[head.answered].float().mean().item()
    return f"{100 * right:.1f} % right by heads that had not seen the photo (shrinkage {head.strength:g})"
