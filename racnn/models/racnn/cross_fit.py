"""Fine-tune a trunk by heads that have not seen the photo.

A head that is fitted on few photos answers these very photos rightly, whatever their features are worth: with twenty a
class nothing is left for the trunk to learn from, and steps on such losses make it worse (docs/experiments.md). Here each
photo's loss is that of a head in closed form (:mod:`racnn.models.racnn.heads`) which was fitted on the other folds, and so
is an honest one; the heads are fitted anew after each epoch. It is cross-fitting (Chernozhukov et al., "Double/debiased
machine learning", Econometrics Journal 21, 2018) with the trunk as what is estimated; heads in closed form inside a
training are known from learning with few examples (Bertinetto et al., "Meta-learning with differentiable closed-form
solvers", ICLR 2019), where, other than here, steps also see through the fit.

The trunk itself does learn from every photo, so that after a few epochs even out of fold nearly all are answered right.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import Field, PrivateAttr
from torch import Tensor, nn

from racnn.models.phase import Batch, PhaseContext
from racnn.models.racnn import losses
from racnn.models.racnn.heads import NUM_FOLDS, STRENGTHS, fit_head
from racnn.models.racnn.looks import read_look, set_values
from racnn.models.racnn.model import RACNN
from racnn.models.racnn.pseudo_boxes import finer_view, read_regions
from racnn.models.racnn.scale_phase import ScalePhase
from racnn.ops.regions import bounding_region, whole


class CrossFit(ScalePhase):
    """Train the backbone of one scale; its classifier is the head in closed form, of all photos."""

    kind: Literal["cross_fit"]
    label_smoothing: float = Field(0.0, ge=0.0, lt=1.0)
    _state: dict[str, Tensor] = PrivateAttr(default_factory=dict)
    _region: Tensor | None = PrivateAttr(None)

    def trained(self, model: RACNN) -> tuple[list[nn.Module], list[nn.Module]]:
        return [model.backbone(scale).trainable() for scale in self.scales], []

    def fitted(self, model: RACNN) -> list[nn.Module]:
        return [model.classifiers[scale - 1] for scale in self.scales]

    def prepare(self, context: PhaseContext) -> None:
        (scale,) = self.scales
        if scale > 1:
            boxes = context.read("where to look", self.photos, read_regions, scale=scale)
            context.attach(self.photos, boxes)
            self._region = bounding_region(boxes)

    def between_epochs(self, context: PhaseContext, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Fit the heads to what the trunk makes of the photos now.

        Returns:
            ``folds`` [N], the head of each photo; ``weight`` [K + 1, C, D] and ``bias`` [K + 1, C] of the heads, the last of
            all photos, for those that are alone in their class; ``strength`` of the shrinkage and ``slope``, the inverse
            temperature, [], both those of before the first epoch: later ones, out of fold but seen by the trunk, would be
            too confident.
        """
        (scale,) = self.scales
        found = context.read(
            f"heads of scale {scale}", self.photos, read_look, scale=scale, region=self._region
        )
        strengths = (float(state["strength"]),) if state else STRENGTHS
        head = fit_head(found["descriptors"], found["labels"], context.model.num_classes, strengths=strengths)
        slope = float(state["slope"]) if state else head.slope
        factor = slope / head.slope
        set_values(context.model.classifiers[scale - 1], weight=factor * head.weight, bias=factor * head.bias)
        return {
            "folds": torch.where(head.answered, head.folds, NUM_FOLDS),
            "weight": factor * torch.cat([head.fold_weights, head.weight[None]]),
            "bias": factor * torch.cat([head.fold_biases, head.bias[None]]),
            "strength": torch.tensor(head.strength, dtype=torch.float64),
            "slope": torch.tensor(slope, dtype=torch.float64),
        }

    def take_up(self, state: Mapping[str, Tensor]) -> None:
        self._state = dict(state)

    def faults_of_state(self, state: Mapping[str, Tensor], model: RACNN) -> list[str]:
        wide = model.classifiers[0].get_parameter("weight").shape
        shapes = {
            "weight": (NUM_FOLDS + 1, *wide),
            "bias": (NUM_FOLDS + 1, wide[0]),
            "strength": (),
            "slope": (),
        }
        fits = state.keys() == {*shapes, "folds"} and all(
            state[name].shape == shape and state[name].isfinite().all() for name, shape in shapes.items()
        )
        if fits and state["weight"].dtype == state["bias"].dtype == torch.float32:
            folds = state["folds"]
            if folds.dtype == torch.int64 and folds.dim() == 1 and len(folds):
                low, high = folds.aminmax()
                if low >= 0 and high <= NUM_FOLDS:
                    return []
        return [f"progress.state does not hold the heads of phase {self.name}"]

    def losses(self, model: RACNN, batch: Batch, class_weights: Tensor | None = None) -> dict[str, Tensor]:
        """Return the classification loss of the scale, each photo's by the head that has not seen it."""
        (scale,) = self.scales
        if scale > 1:
            noise = (
                self.jitter * (2.0 * batch["noise"] - 1.0) if model.training and self.num_noise() else None
            )
            view, _ = finer_view(model, batch, scale, noise)
        else:
            source = model.normalise(batch["image"])
            view = model.crop(1, source, whole(len(source), device=source.device))
        descriptor = model.describe(model.extract(scale, view))
        if self._state["folds"].device != descriptor.device:  # once an epoch
            self._state = {name: value.to(descriptor.device) for name, value in self._state.items()}
        own = self._state["folds"][batch["index"]]
        every = torch.einsum("kcd,bd->bkc", self._state["weight"], descriptor) + self._state["bias"]
        logits = every[torch.arange(len(own), device=own.device), own]
        return losses.classification_losses(
            {scale: logits},
            batch["label"],
            self.scales,
            label_smoothing=self.label_smoothing,
            class_weights=class_weights,
        )

    def score_names(self, num_scales: int) -> list[str]:
        """Return its own scale and all finer ones: what a trunk shows also says where these look."""
        return [f"scale_{scale}" for scale in range(min(self.scales), num_scales + 1)]

    def num_noise(self) -> int:
        return 3 if self.jitter > 0 and self.scales != (1,) else 0

    def misfits(self, model: Any) -> list[str]:
        found = super().misfits(model)
        if len(self.scales) != 1 and model.num_scales > 1:
            found.append(
                f"a cross_fit phase trains one scale; name it, such as scales: [1], not {list(self.scales)}"
            )
        if model.shared_backbone and model.num_scales > 1:
            found.append("a cross_fit phase trains one scale's own backbone, not model.shared_backbone")
        if model.zoom_from != "source" and self.scales != (1,):
            found.append(f"a cross_fit phase needs model.zoom_from source, not {model.zoom_from}")
        return found
