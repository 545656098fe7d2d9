"""Fine-tune the trunk by heads that have not seen the photo.

A head that is fitted on few photos answers these very photos rightly, whatever their features are worth: with twenty a
class nothing is left for the trunk to learn from, and steps on such losses make it worse (docs/experiments.md). Here each
photo's loss is that of a head in closed form (:mod:`racnn.models.racnn.heads`) which was fitted on the other folds, and so
is an honest one; the heads are fitted anew after each epoch. It is cross-fitting (Chernozhukov et al., "Double/debiased
machine learning", Econometrics Journal 21, 2018) with the trunk as what is estimated; heads in closed form inside a
training are known from learning with few examples (Bertinetto et al., "Meta-learning with differentiable closed-form
solvers", ICLR 2019), where, other than here, steps also see through the fit.

The trunk itself does learn from every photo, so that after a few epochs even out of fold nearly all are answered right, and
their probabilities say nothing of new photos. So how sure each look is, how much it counts and when no further look is needed
are chosen in the end by validation photos: a few numbers, fitted to the photos that the network is then measured on. Their
probabilities flatter a little; what is taken for what hardly changes.

All scales learn at once, each photo in all its looks; with one trunk for all scales it has so many times as many views to
learn from. Where a photo's looks go is decided before the first step, by heads that have not seen it. So the views are always
the same ones, and what the frozen blocks make of them is read once and kept in the run's folder: steps open no photo.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, PrivateAttr
from torch import Tensor, nn

from racnn.models.calibration import pool_weights, pooled_loss, weights_out_of_fold
from racnn.models.parts import read_rows
from racnn.models.phase import Batch, GradientPhase, PhaseContext
from racnn.models.racnn import losses
from racnn.models.racnn.heads import NUM_FOLDS, best_slope, fit_head
from racnn.models.racnn.looks import SAMPLE, aim, find_looks, read_sample, set_values
from racnn.models.racnn.model import RACNN
from racnn.ops.regions import rectangle, whole


class CrossFit(GradientPhase):
    """Train the backbones of all scales; their classifiers are heads in closed form, of all photos."""

    trains_fusion: ClassVar[bool] = True
    needs_one_process: ClassVar[bool] = True
    augments: ClassVar[bool] = False
    answers_out_of_fold: ClassVar[bool] = True
    replaces_best: ClassVar[bool] = True

    kind: Literal["cross_fit"]
    label_smoothing: float = Field(0.0, ge=0.0, lt=1.0)
    hold_norm: bool = Field(True, description="leave the statistics of batch norm as they were loaded")
    mirrored: bool = Field(False, description="show every other view mirrored, at random")
    head_lr_factor: float = Field(
        10.0, gt=0.0, description="gates and attention learn this much faster than the trunk"
    )
    tolerance: float = Field(
        0.0015, ge=0.0, lt=1.0, description="share of the photos that early exit may lose"
    )
    _state: dict[str, Tensor] = PrivateAttr(default_factory=dict)
    _maps: list[Tensor] = PrivateAttr(default_factory=list)  # of each scale, [N, C, h, w]

    def trained(self, model: RACNN) -> tuple[list[nn.Module], list[nn.Module]]:
        backbones = dict.fromkeys(model.backbone(scale) for scale in self.scales)
        heads = [gate for backbone in backbones for gate in backbone.gates.values()]
        heads += [module for scale in self.scales for module in model.attention(scale)]
        return [backbone.trainable() for backbone in backbones], heads

    def fitted(self, model: RACNN) -> list[nn.Module]:
        return [*model.classifiers, *model.apns, model.fusion]

    def between_epochs(self, context: PhaseContext, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Fit the heads, and find the object, by what the trunk makes of the photos now.

        Returns:
            ``labels`` [N] and ``folds`` [N], the head of each photo; ``weight`` [S, K + 1, C, D] and ``bias`` [S, K + 1, C] of
            each scale's heads, the last of all photos, for those that are alone in their class. As they were before the first
            epoch, for later ones, out of fold but seen by the trunk, would be too sure: ``strength`` [S] of the shrinkage,
            ``slope`` [S], the inverse temperature, ``pool`` [S], the weights of the fusion, and ``region`` [S, N, 3], where the
            looks go.
        """
        model: RACNN = context.model
        if state:
            kept = dict(state)
            rows = [
                context.read_stored(f"heads of scale {scale}", self.photos, self._describe(model, scale))
                for scale in self.scales
            ]
            descriptors = [row["descriptors"] for row in rows]
            heads = [
                fit_head(found, kept["labels"], model.num_classes, strengths=(float(strength),))
                for found, strength in zip(descriptors, kept["strength"], strict=True)
            ]
            self._find_object(context)
        else:
            if (
                model.num_scales > 1
                and model.apns[0].reads == "inner"
                and not model.apns[0].get_buffer("direction").any()
            ):
                self._find_object(context)  # no looks phase has
            looks = list(find_looks(context, self.photos))
            heads, labels = [look.head for look in looks], looks[0].labels
            descriptors = [look.descriptors for look in looks]
            kept = {
                "labels": labels,
                "folds": torch.where(heads[0].answered, heads[0].folds, NUM_FOLDS),
                "strength": torch.tensor([head.strength for head in heads], dtype=torch.float64),
                "slope": torch.tensor([head.slope for head in heads], dtype=torch.float64),
                "pool": torch.tensor(weights_out_of_fold(heads, labels), dtype=torch.float64),
                "region": torch.stack([_shaped(look.region, model.sides, len(labels)) for look in looks]),
            }
        factors = [float(slope) / head.slope for slope, head in zip(kept["slope"], heads, strict=True)]
        every = list(zip(factors, heads, model.classifiers, strict=True))
        for factor, head, classifier in every:
            set_values(classifier, weight=factor * head.weight, bias=factor * head.bias)
        if model.num_scales > 1:
            norms = [1.0 if model.root else float(found.norm(dim=1).mean()) for found in descriptors]
            model.init_fusion(norms, kept["pool"].tolist())
        weight = [factor * torch.cat([head.fold_weights, head.weight[None]]) for factor, head, _ in every]
        bias = [factor * torch.cat([head.fold_biases, head.bias[None]]) for factor, head, _ in every]
        return kept | {"weight": torch.stack(weight), "bias": torch.stack(bias)}

    def _find_object(self, context: PhaseContext) -> None:
        model: RACNN = context.model
        if model.num_scales > 1 and model.apns[0].reads == "inner":
            aim(model, context.read("what photos have in common", self.photos, read_sample, most=SAMPLE))

    def take_up(self, context: PhaseContext, state: Mapping[str, Tensor]) -> None:
        model: RACNN = context.model
        device = next(model.parameters()).device
        self._state = {name: state[name].to(device) for name in ("folds", "weight", "bias")}
        if self._maps:
            return
        every = []
        for scale, region in zip(self.scales, state["region"], strict=True):
            frozen = list(model.backbone(scale).frozen_part().state_dict().values())
            # a view that nothing is frozen for is mirrored in the step
            for mirrored in (True, False) if self.mirrored and frozen else (False,):
                maps = context.store(
                    _stored(scale, mirrored),
                    self.photos,
                    read_maps,
                    depends_on=[region, *frozen],
                    scale=scale,
                    region=region,
                    mirrored=mirrored,
                )
            every.append(maps)
        self._maps = every  # not added to, for copies of the phase share the list

    def faults_of_state(self, state: Mapping[str, Tensor], model: RACNN) -> list[str]:
        said = f"progress.state does not hold the heads of phase {self.name}"
        labels = state.get("labels")
        if labels is None or labels.dim() != 1 or not len(labels):
            return [said]
        scales, num = model.num_scales, len(labels)
        wide = model.classifiers[0].get_parameter("weight").shape
        expected = {
            "labels": (torch.int64, (num,)),
            "folds": (torch.int64, (num,)),
            "strength": (torch.float64, (scales,)),
            "slope": (torch.float64, (scales,)),
            "pool": (torch.float64, (scales,)),
            "region": (torch.float32, (scales, num, 2 + model.sides)),
            "weight": (torch.float32, (scales, NUM_FOLDS + 1, *wide)),
            "bias": (torch.float32, (scales, NUM_FOLDS + 1, wide[0])),
        }
        fits = {name: (value.dtype, tuple(value.shape)) for name, value in state.items()} == expected
        if not fits or not all(value.isfinite().all() for value in state.values()):
            return [said]
        highest = {"labels": model.num_classes - 1, "folds": NUM_FOLDS}
        ranges = {name: state[name].aminmax() for name in highest}
        if any(low < 0 or high > highest[name] for name, (low, high) in ranges.items()):
            return [said]
        return []

    def losses(self, model: RACNN, batch: Batch, class_weights: Tensor | None = None) -> dict[str, Tensor]:
        """Return the classification losses of the scales, each photo's by the head that has not seen it."""
        own = self._state["folds"][batch["index"]]
        photos = torch.arange(len(own), device=own.device)
        logits = {}
        for number, scale in enumerate(self.scales):
            maps = batch[_stored(scale)]
            if self.mirrored:
                turned = (batch["noise"][:, number] < 0.5)[:, None, None, None]
                stored = batch.get(_stored(scale, True))
                maps = torch.where(turned, maps.flip(3) if stored is None else stored, maps)
            descriptor = model.describe(model.extract_rest(scale, maps))
            every = torch.einsum("kcd,bd->bkc", self._state["weight"][number], descriptor)
            logits[scale] = (every + self._state["bias"][number])[photos, own]
        return losses.classification_losses(
            logits,
            batch["label"],
            self.scales,
            label_smoothing=self.label_smoothing,
            class_weights=class_weights,
        )

    def _describe(self, model: RACNN, scale: int) -> Callable[[Tensor], dict[str, Tensor]]:
        """Return what makes the descriptors of a scale's views [B]."""
        maps = self._maps[scale - 1]
        device = next(model.parameters()).device

        def read(index: Tensor) -> dict[str, Tensor]:
            features = model.extract_rest(scale, maps[index].to(device))
            return {"descriptors": model.describe(features).cpu()}

        return read

    def finish(self, context: PhaseContext) -> None:
        """Choose how sure each scale is, how much it counts, and when no further look is needed, by validation photos."""
        model: RACNN = context.model
        model.round_weights()
        answers, labels = context.answers()
        slopes = [best_slope(logits, labels)[0] for logits in answers]
        for slope, classifier in zip(slopes, model.classifiers, strict=True):
            weight, bias = classifier.get_parameter("weight"), classifier.get_parameter("bias")
            set_values(classifier, weight=slope * weight, bias=slope * bias)
        shown = ", ".join(f"{1.0 / slope:.2f}" for slope in slopes)
        context.log(
            f"{self.name}: by validation photos the looks' temperatures are {shown} times what they were"
        )
        if model.num_scales == 1:
            return
        answers = [slope * logits for slope, logits in zip(slopes, answers, strict=True)]
        weights = pool_weights(answers, labels)
        model.init_fusion([1.0] * len(weights) if model.root else context.descriptor_norms(), weights)
        fused = torch.stack([w * x for w, x in zip(weights, answers, strict=True)]).sum(dim=0)
        context.choose_early_exit(answers, fused, labels, tolerance=self.tolerance, on_validation=True)
        shown = ", ".join(f"{weight:.2f}" for weight in weights)
        context.log(f"{self.name}: the looks count {shown}")

    def score_names(self, num_scales: int) -> list[str]:
        return ["loss"]

    def scores(self, report: Mapping[str, Any], loss: float | None = None) -> dict[str, float]:
        """Return minus the loss of the looks together, at the weights and temperature that suit them best."""
        assert loss is not None
        return {"loss": -loss}

    def validation_loss(self, model: RACNN, predictions: Any) -> float | None:
        return pooled_loss(predictions.logits, predictions.labels)

    def head_factor(self) -> float:
        return self.head_lr_factor

    def holds_norm(self) -> bool:
        return self.hold_norm

    def num_noise(self) -> int:
        return len(self.scales) if self.mirrored else 0

    def num_scales_run(self, num_scales: int) -> int:
        return num_scales

    def last_trained_scale(self) -> int:
        return max(self.scales)

    @property
    def name(self) -> str:
        return f"{self.position + 1:02d}-{self.kind}"

    def idle_keys(self, num_scales: int) -> dict[str, str]:
        others = {"scales": "other kinds and does nothing in a cross_fit phase, which trains all"}
        return super().idle_keys(num_scales) | (others if self.scales else {})

    def misfits(self, model: Any) -> list[str]:
        found = super().misfits(model)
        if model.zoom_from != "source" and model.num_scales > 1:
            found.append(f"a cross_fit phase needs model.zoom_from source, not {model.zoom_from}")
        if model.gates == "sca":
            found.append(
                "a cross_fit phase runs each look alone, and model.gates sca steers by the look before"
            )
        return found


def _shaped(region: Tensor, sides: int, num: int) -> Tensor:
    """Return regions of N photos, or one for all of them, as squares [N, 3] or, with 2 sides, rectangles [N, 4]."""
    return (region if sides == 1 else rectangle(region)).expand(num, 2 + sides)


def _stored(scale: int, mirrored: bool = False) -> str:
    """Return the name under which a batch brings along what the frozen blocks made of its views."""
    return f"views_{scale}{'_mirrored' * mirrored}"


@torch.no_grad()
def read_maps(
    model: RACNN,
    batches: Iterable[dict[str, Tensor]],
    scale: int,
    *,
    region: Tensor,
    mirrored: bool,
    device: torch.device,
    keep: Callable[[Tensor, Tensor], None],
    after_batch: Callable[[], None] = lambda: None,
) -> None:
    """Give away what the frozen blocks of a scale make of its view of each photo.

    Args:
        model: Put into evaluation mode.
        batches: Batches of photos without random changes, from :func:`racnn.data.eval_loader`.
        scale: Counted from 1.
        region: [N, 3], where it looks.
        mirrored: Whether the views are mirrored.
        device: Where the network is.
        keep: Called with positions of photos [B] and their rows [B, C, h, w].
        after_batch: Called after each batch; it may raise to stop.
    """

    def read(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        source = model.normalise(batch["image"].to(device))
        own = whole(len(source), device=device) if scale == 1 else region[batch["index"]].to(device)
        view = model.crop(scale, source, own)
        keep(batch["index"], model.extract_frozen(scale, view.flip(3) if mirrored else view).cpu())
        return {"done": batch["index"]}

    model.eval()
    read_rows(read, batches, device=device, after_batch=after_batch)
