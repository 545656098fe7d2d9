"""The phases of training RA-CNN: a class each, which holds what is special about the kind, see :mod:`racnn.models.phase`.

classification   backbones and classifiers; the APNs are frozen                        (equation 8, first sum)
cross_fit        the backbones, by heads in closed form that have not seen the photo, see :mod:`racnn.models.racnn.cross_fit`
apn_init         an APN, towards the pseudo box that its frozen scale's map shows
ranking          the APNs, so that the finer scale is more certain of the true class   (equation 9)
localise         the APNs, by the finer scale's classification loss, as spatial transformers learn
fusion           the layer over all descriptors                                        (equation 10)
looks            all but the trunk, in one go, see :mod:`racnn.models.racnn.looks`
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator
from torch import Tensor, nn

from racnn.models.calibration import pool_weights
from racnn.models.phase import Batch, GradientPhase, Phase, PhaseContext
from racnn.models.racnn import losses
from racnn.models.racnn.cross_fit import CrossFit
from racnn.models.racnn.looks import Looks
from racnn.models.racnn.model import RACNN
from racnn.models.racnn.pseudo_boxes import (
    find_common_part,
    finer_view,
    read_boxes,
    read_regions,
    target_region,
)
from racnn.models.racnn.ranking_gradients import GRADIENTS
from racnn.sections import Fraction


class Classification(GradientPhase):
    """Train backbones and classifiers; the finer ones on views whose regions are jittered, as a region is never perfect."""

    kind: Literal["classification"]
    init_from: int | None = Field(None, ge=1, description="start from this scale's backbone and classifier")
    label_smoothing: float = Field(0.1, ge=0.0, lt=1.0)
    jitter: float = Field(1.0, ge=0.0, description="strength of the random shifts of the regions; 0: none")
    hold_norm: bool = Field(False, description="leave the statistics of batch norm as they were loaded")
    hold_attention: bool = Field(
        False,
        description="leave what model.pooling attention and model.gates weigh as it is; at first all alike",
    )
    head_lr_factor: float = Field(
        10.0, gt=0.0, description="classifiers learn this much faster than the trunk"
    )

    def trained(self, model: RACNN) -> tuple[list[nn.Module], list[nn.Module]]:
        backbones = dict.fromkeys(model.backbone(scale) for scale in self.scales)
        heads: list[nn.Module] = [model.classifiers[scale - 1] for scale in self.scales]
        if not self.hold_attention:
            heads += [module for scale in self.scales for module in model.attention(scale)]
            heads += [gate for backbone in backbones for gate in backbone.gates.values()]
        return [backbone.trainable() for backbone in backbones], heads

    def losses(self, model: RACNN, batch: Batch, class_weights: Tensor | None = None) -> dict[str, Tensor]:
        """Return the classification losses of the scales.

        A batch with ``pseudo_box`` brings along where its photos' views of the only scale that is trained lie; the coarser
        scales are then not run.
        """
        noise = None
        if model.training and self.num_noise():
            noise = self.jitter * (2.0 * batch["noise"] - 1.0).unflatten(1, (-1, 3))
        if self.is_alone() and "pseudo_box" in batch:
            (scale,) = self.scales
            view, region = finer_view(model, batch, scale, None if noise is None else noise[:, -1])
            logits = {scale: model.forward_scale(scale, view, region).logits}
        else:
            output = model(batch["image"], num_scales=max(self.scales), noise=noise)
            logits = dict(enumerate(output.logits, 1))
        return losses.classification_losses(
            logits,
            batch["label"],
            self.scales,
            label_smoothing=self.label_smoothing,
            class_weights=class_weights,
        )

    def is_alone(self) -> bool:
        """Return whether a finer scale learns alone, so that all that decides where it looks is frozen."""
        return len(self.scales) == 1 and self.scales[0] > 1

    def prepare(self, context: PhaseContext) -> None:
        # a look that steers by the one before needs it run
        if self.is_alone() and context.model.zoom_from == "source" and not context.model.steered:
            context.attach(
                self.photos, context.read("where to look", self.photos, read_regions, scale=self.scales[0])
            )

    def begin(self, context: PhaseContext) -> None:
        for scale in self.scales if self.init_from is not None else ():
            if scale != self.init_from:
                context.model.copy_scale(self.init_from, scale)

    def score_names(self, num_scales: int) -> list[str]:
        return [f"scale_{scale}" for scale in self.scales]

    def num_noise(self) -> int:
        return 3 * (max(self.scales) - 1) if self.jitter > 0 else 0

    def head_factor(self) -> float:
        return self.head_lr_factor

    def holds_norm(self) -> bool:
        return self.hold_norm

    def last_trained_scale(self) -> int:
        return max(self.scales)

    def idle_keys(self, num_scales: int) -> dict[str, str]:
        idle = super().idle_keys(num_scales)
        scales = self.scales or tuple(range(1, num_scales + 1))
        if scales == (1,):
            idle["jitter"] = "the finer scales and does nothing at scale 1, which sees the whole photo"
        if scales == (self.init_from,):
            idle["init_from"] = f"other scales: scale {self.init_from} would start from itself"
        return idle

    def named_scales(self) -> tuple[int, ...]:
        return (*self.scales, self.init_from or 1)

    def misfits(self, model: Any) -> list[str]:
        found = super().misfits(model)
        if self.hold_attention and model.pooling == "mean" and model.gates == "none":
            found.append(
                "hold_attention belongs to model.pooling attention and model.gates, of which there are none"
            )
        if model.shared_backbone and self.scales and len(self.scales) < model.num_scales:
            found.append(
                "with model.shared_backbone a classification phase must train all scales, or those it leaves out would "
                "drift; leave out 'scales', or use schedule=paper"
            )
        return found


class _RegionPhase(GradientPhase):
    """Trains APNs; ``scales`` name the scales that propose."""

    names_regions: ClassVar[bool] = True

    def misfits(self, model: Any) -> list[str]:
        found = super().misfits(model)
        if model.apn == "response":
            found.append(f"a {self.kind} phase trains APNs, and with model.apn response there are none")
        return found

    def trained(self, model: RACNN) -> tuple[list[nn.Module], list[nn.Module]]:
        return [model.apns[scale - 1] for scale in self.scales], []


class ApnInit(_RegionPhase):
    """Regress an APN to the box that the map of its frozen scale shows."""

    proposes: ClassVar[bool] = True

    kind: Literal["apn_init"]
    target: Literal["component", "peak"] = "component"
    response: Literal["sum", "cam", "ddt"] = Field(
        "sum",
        description="map to read the box from: all channels, the true class, or what the photos have in common",
    )
    enlarge: float = Field(
        1.0, ge=1.0, le=4.0, description="read the map from a view so many times as large as the scale's own"
    )
    level: float = Field(
        0.0, ge=0.0, lt=1.0, description="component: threshold, from the map's mean (0) to its peak (1)"
    )
    trim: float = Field(
        0.0, ge=0.0, lt=0.25, description="component: share of the response that the box leaves out a side"
    )

    def losses(self, model: RACNN, batch: Batch, class_weights: Tensor | None = None) -> dict[str, Tensor]:
        """Return the loss of the APN against the batch's ``pseudo_box``."""
        (scale,) = self.scales
        output = model(batch["image"], num_scales=scale)
        target = self._target(model, batch["pseudo_box"], output)
        proposal, bounds = output.proposals[scale - 1], model.bounds[scale - 1]
        return losses.apn_init_losses(proposal, target, scale, bounds=bounds)

    def enlargements(self) -> list[tuple[int, float]]:
        return [(scale, self.enlarge) for scale in self.scales]

    def taught_regions(self) -> tuple[int, ...]:
        return self.scales

    def score_names(self, num_scales: int) -> list[str]:
        return ["loss"]

    def scores(self, report: Mapping[str, Any], loss: float | None = None) -> dict[str, float]:
        """Return minus the phase's own loss."""
        assert loss is not None
        return {"loss": -loss}

    def validation_loss(self, model: RACNN, predictions: Any) -> float | None:
        (scale,) = self.scales
        assert predictions.pseudo_boxes is not None
        target = self._target(model, predictions.pseudo_boxes, predictions)
        proposal, bounds = predictions.proposals[scale - 1], model.bounds[scale - 1]
        return losses.apn_init_losses(proposal, target, scale, bounds=bounds)["loss"].item()

    def _target(self, model: RACNN, boxes: Tensor, seen: Any) -> Tensor:
        """Return the region that the APN should propose, in its frame."""
        (scale,) = self.scales
        frame = seen.frames[scale - 1] if model.parallel else None
        return target_region(boxes, seen.regions[scale - 1], self.target, frame=frame, sides=model.sides)

    def prepare(self, context: PhaseContext) -> None:
        reading: dict[str, Any] = {"scale": self.scales[0], "config": self}
        common = None
        if self.response == "ddt":
            if not context.model.backbone(self.scales[0]).inner:
                context.log(
                    f"{self.name}: no block before the last one of this backbone is known, so that response: ddt reads the last "
                    "map, which may tell the object less well; tools/teacher.py compares it with sum and cam"
                )
            common = context.read("what photos have in common", self.photos, find_common_part, **reading)
        for split in (self.photos, "val"):
            context.attach(split, context.read("reading boxes", split, read_boxes, common=common, **reading))

    def idle_keys(self, num_scales: int) -> dict[str, str]:
        idle = super().idle_keys(num_scales)
        if self.target != "component":
            idle |= dict.fromkeys(("level", "trim"), f"target component and does nothing with {self.target}")
        return idle

    def misfits(self, model: Any) -> list[str]:
        found = super().misfits(model)
        if not found and len(self.scales) != 1 and model.num_scales > 2:
            found.append(
                "an apn_init phase teaches one region, that of a trained scale; name it, such as scales: [1], instead of "
                f"{list(self.scales)}"
            )
        return found


class _ByFinerScale(_RegionPhase):
    """Moves regions by what the finer scales, which are frozen, say of their views."""

    no_score_may_fall: ClassVar[bool] = True

    def score_names(self, num_scales: int) -> list[str]:
        """Return all finer scales: a region moves every finer view, not only the next one."""
        return [f"scale_{scale}" for scale in range(min(self.scales) + 1, num_scales + 1)]

    def num_scales_run(self, num_scales: int) -> int:
        return max(self.scales) + 1

    def follows_view(self) -> bool:
        """Return whether its derivative reaches the region through the sampler."""
        return True

    def misfits(self, model: Any) -> list[str]:
        found = super().misfits(model)
        if model.sampler == "crop" and self.follows_view():
            found.append(
                f"a {self.kind} phase follows a derivative through the sampler, and model.sampler crop lets none through"
            )
        return found


class Ranking(_ByFinerScale):
    """Move the APNs so that each finer scale gives the true class a higher probability than the coarser one.

    The coarser scale's probability is detached: a pair moves only the APN whose region its finer scale classifies.
    """

    kind: Literal["ranking"]
    margin: float = Field(0.05, ge=0.0)
    compare: Literal["prob", "log_prob"] = Field("prob", description="of the true class; the paper: prob")
    gradient: Literal["exact", "mask", "energy", "smoothed"] = Field(
        "exact", description="how the loss reaches the region, see racnn/models/racnn/ranking_gradients.py"
    )
    pairs: int = Field(2, ge=1, description="smoothed: pairs of regions drawn around each proposal")
    spread: Fraction = Field(
        0.1, gt=0.0, description="smoothed: distance of a pair, as a share of the region's side"
    )

    def losses(self, model: RACNN, batch: Batch, class_weights: Tensor | None = None) -> dict[str, Tensor]:
        """Return the ranking losses of the regions, ``ranking_s``, and their sum ``loss``."""
        return GRADIENTS[self.gradient](model, batch, self)

    def follows_view(self) -> bool:
        return self.gradient != "smoothed"

    def num_noise(self) -> int:
        return 3 * self.pairs * len(self.scales) if self.gradient == "smoothed" else 0

    def idle_keys(self, num_scales: int) -> dict[str, str]:
        idle = super().idle_keys(num_scales)
        if self.gradient != "smoothed":
            idle |= dict.fromkeys(
                ("pairs", "spread"), f"gradient smoothed and does nothing with {self.gradient}"
            )
        return idle

    def misfits(self, model: Any) -> list[str]:
        found = super().misfits(model)
        if self.gradient == "mask" and not model.mask:
            found.append("a ranking phase with gradient mask needs model.mask")
        return found


class Localise(_ByFinerScale):
    """Move the APNs by the finer scales' own classification loss, through the sampler into the place.

    How spatial transformers (Jaderberg et al. 2015) and DRAW learn where to look: no coarser look is compared with. The scales themselves
    are frozen.
    """

    kind: Literal["localise"]
    label_smoothing: float = Field(0.0, ge=0.0, lt=1.0)

    def losses(self, model: RACNN, batch: Batch, class_weights: Tensor | None = None) -> dict[str, Tensor]:
        """Return the losses of the regions, ``localise_s``, and their sum ``loss``."""
        output = model(batch["image"], num_scales=max(self.scales) + 1)
        return losses.localise_losses(
            output.logits,
            batch["label"],
            self.scales,
            label_smoothing=self.label_smoothing,
            class_weights=class_weights,
        )


class Fusion(GradientPhase):
    """Train the fusion layer on frozen descriptors. It starts as the weighted sum of the scales' answers."""

    trains_fusion: ClassVar[bool] = True

    kind: Literal["fusion"]

    @model_validator(mode="after")
    def _uses_all_scales(self) -> Self:
        if self.scales:
            raise ValueError("'scales' does nothing in a fusion phase, which always uses all")
        return self

    def trained(self, model: RACNN) -> tuple[list[nn.Module], list[nn.Module]]:
        return [model.fusion], []

    def losses(self, model: RACNN, batch: Batch, class_weights: Tensor | None = None) -> dict[str, Tensor]:
        output = model(batch["image"])
        assert output.fused is not None
        return losses.fusion_losses(output.fused, batch["label"], class_weights=class_weights)

    def score_names(self, num_scales: int) -> list[str]:
        return ["fused"]

    def begin(self, context: PhaseContext) -> None:
        norms = context.descriptor_norms()
        weights = pool_weights(*context.answers())
        context.model.init_fusion(norms, weights)
        shown = ", ".join(f"{weight:.2f}" for weight in weights)
        context.log(f"{self.name}: the scales count {shown} at its start")

    def num_scales_run(self, num_scales: int) -> int:
        return num_scales

    def default_scales(self, every: tuple[int, ...]) -> tuple[int, ...]:
        return ()


PHASES: dict[str, type[Phase]] = {
    "classification": Classification,
    "cross_fit": CrossFit,
    "apn_init": ApnInit,
    "ranking": Ranking,
    "localise": Localise,
    "fusion": Fusion,
    "looks": Looks,
}
