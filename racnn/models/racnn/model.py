"""RA-CNN: classify the image, propose a region, crop it, classify again. The file to read first.

    image --crop--> view 1 -> backbone 1 -> features -> descriptor -> classifier 1 -> logits 1
                                                \\-> APN 1 -> proposal --> region 2
    image --crop(region 2)--> view 2 -> backbone 2 -> ...                          -> logits 2

Fu, Zheng, Mei, "Look Closer to See Better: Recurrent Attention Convolutional Neural Network for Fine-grained Image
Recognition", CVPR 2017.

Convention
    Regions are (tx, ty, tl), with the affine sampler (tx, ty, sx, sy), see :mod:`racnn.ops.regions`. A scale's ``region`` is where its view lies in the image, its
    ``proposal`` is what is cropped next, in the frame of its own view, or where regions are parallel, of the first. Scales are counted from 1 in every
    argument, configuration and log; only lists are counted from 0.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from racnn.errors import ConfigError, did_you_mean
from racnn.models.attention import CellAttention
from racnn.models.backbone import Backbone, autocast_as, build_backbone, reason_against_view
from racnn.models.racnn.apn import build_apn
from racnn.models.racnn.level_heads import LevelHeads
from racnn.models.racnn.losses import response_map
from racnn.ops.crop import SAMPLERS, gaussian
from racnn.ops.heatmap import evidence_map
from racnn.ops.mask import frame_steepness
from racnn.ops.regions import compose, jitter, whole
from racnn.sections import default_bounds

FLAT = 1e-3  # of the descriptor's mean: where the root is no longer followed


@dataclass
class ScaleOutput:
    """The output of one scale.

    Attributes:
        region: [B, 3], where the view lies in the image.
        view: [B, 3, h, w], the normalised crop that was classified.
        features: [B, C, h', w'] of the backbone; networks that propose, and maps that teach them, read these.
        descriptor: [B, C], features averaged over the map, float32; see ``descriptor`` of :class:`RACNN`.
        logits: [B, num_classes].
        proposal: [B, 3], the region to crop next in the frame of this view, or of ``frame``; None at the finest scale.
        attention: [B, h', w'] of mean 1, how the cells of the features were weighed; None: all alike.
        frame: [B, 3], the region of another view that the next one was proposed from; None: of this one.
    """

    region: Tensor
    view: Tensor
    features: Tensor
    descriptor: Tensor
    logits: Tensor
    proposal: Tensor | None
    attention: Tensor | None = None
    frame: Tensor | None = None

    @property
    def weighed(self) -> Tensor:
        """The features that the descriptor is pooled from, [B, C, h', w']."""
        return weigh(self.features, self.attention)

    @property
    def next_region(self) -> Tensor:
        """The proposal in the frame of the image, [B, 3]; no gradient reaches coarser regions."""
        assert self.proposal is not None, "the finest scale proposes nothing"
        return compose(self.proposed_in.detach(), self.proposal)

    @property
    def proposed_in(self) -> Tensor:
        """The region in whose frame the proposal is, [B, 3]."""
        return self.region if self.frame is None else self.frame


@dataclass
class RACNNOutput:
    """The output of the scales that were run, see :class:`racnn.models.family.Output`.

    Attributes:
        scales: One :class:`ScaleOutput` each, the coarsest first.
        fused: [B, num_classes] logits of the fusion layer; None unless all scales were run.
    """

    scales: list[ScaleOutput]
    fused: Tensor | None = None

    @property
    def logits(self) -> list[Tensor]:
        """[B, num_classes] per scale."""
        return [scale.logits for scale in self.scales]

    @property
    def regions(self) -> list[Tensor]:
        """[B, 3] per scale, where its view lies in the image; the first is the whole image."""
        return [scale.region for scale in self.scales]

    @property
    def proposals(self) -> list[Tensor]:
        """[B, 3] per scale but the finest, in the frame of its view; of the last that was run, nothing was cropped yet."""
        return [scale.proposal for scale in self.scales if scale.proposal is not None]

    @property
    def frames(self) -> list[Tensor]:
        """[B, 3] per proposal, the region in whose frame it is."""
        return [scale.proposed_in for scale in self.scales if scale.proposal is not None]

    @property
    def views(self) -> list[Tensor]:
        """[B, 3, h, w] per scale, normalised."""
        return [scale.view for scale in self.scales]

    @property
    def attentions(self) -> list[Tensor] | None:
        """[B, h, w] per scale, see :class:`ScaleOutput`; None where cells are weighed alike."""
        found = [scale.attention for scale in self.scales if scale.attention is not None]
        return found or None

    @property
    def descriptors(self) -> list[Tensor]:
        """[B, C] per scale."""
        return [scale.descriptor for scale in self.scales]


class RACNN(nn.Module):
    """The recursion over scales.

    Args:
        num_classes: Number of classes of every classifier.
        backbone: A name for :func:`racnn.models.backbone.build_backbone`.
        view_sizes: Side in pixels of each scale's square view; their number is the number of scales.
        weights: What every backbone starts from: None, 'imagenet' or a file.
        frozen_stages: How many first stages of every backbone are never trained, see :meth:`Backbone.freeze`.
        shared_backbone: One backbone for all scales; the paper has one each.
        apn: 'compact', 'paper', 'compact_unnormalised' or 'response', see :mod:`racnn.models.racnn.apn`.
        descriptor: 'mean' of the features over the map, as the paper has it, or 'root': the signed square root of the mean,
            at length 1 (Perronnin, Sanchez, Mensink, "Improving the Fisher Kernel for Large-Scale Image Classification",
            ECCV 2010). A few strong channels then decide less, which linear heads on a frozen trunk gain by.
        pooling: 'mean' of the features over the map, or 'attention': of features that are weighed cell by cell first, see
            :class:`racnn.models.attention.CellAttention`.
        level_heads: Names of coarser levels of the classes that have heads of their own, the finest first, see
            :mod:`racnn.models.racnn.level_heads`; with 'response' parallel regions after the second are theirs, one a level.
        gates: What stands after stages of the backbones, a name in :data:`racnn.models.attention.GATES`, or 'none'.
        gated_stages: Which stages, counted from 1; empty: all that are not frozen.
        bounds: Least and largest side of each proposal, as fractions of its view's side.
        sampler: What cuts views, a name in :data:`racnn.ops.crop.SAMPLERS`; for 'affine' regions are rectangles.
        regions: 'nested': each is proposed from the view before, within it. 'parallel': all are proposed from the first view, anywhere
            in the photo, as Jaderberg et al. (NeurIPS 2015, section 4.3) do with their transformers.
        sigma: Width of the filters of the sampler 'gaussian', see :func:`racnn.ops.crop.gaussian`.
        zoom_from: 'source' crops every view from the image through composed regions: no double interpolation, and real
            detail where the image has more pixels than view 1. 'parent' crops it from the previous view, as the paper does.
        antialias: Widen the sampling kernel where a region has more pixels than its view.
        mask: Multiply each finer view by its soft box mask (equations 4 to 6).
        steepness: The paper's k, per pixel of the image that is cropped.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        *,
        num_classes: int,
        backbone: str = "vgg16",
        view_sizes: Sequence[int] = (448, 224, 224),
        weights: str | None = None,
        frozen_stages: int = 0,
        shared_backbone: bool = False,
        apn: str = "compact",
        descriptor: str = "mean",
        pooling: str = "mean",
        level_heads: Sequence[str] = (),
        gates: str = "none",
        gated_stages: Sequence[int] = (),
        bounds: Sequence[tuple[float, float]] | None = None,
        sampler: str = "zoom",
        regions: str = "nested",
        sigma: float = 0.5,
        zoom_from: str = "source",
        antialias: bool = True,
        mask: bool = True,
        steepness: float = 10.0,
    ) -> None:
        super().__init__()
        assert zoom_from in ("source", "parent"), zoom_from
        assert descriptor in ("mean", "root"), descriptor
        self.view_sizes = tuple(view_sizes)
        self.num_scales = len(self.view_sizes)
        self.num_classes = num_classes
        sample = SAMPLERS[sampler]
        self.sample = partial(sample, sigma=sigma) if sample is gaussian else sample
        self.parallel = regions == "parallel"
        self.sides = 2 if sampler == "affine" else 1
        self.root = descriptor == "root"
        self.zoom_from = zoom_from
        self.antialias = antialias
        self.mask = mask
        self.steepness = steepness
        self.compute_dtype: torch.dtype | None = (
            None  # of the backbones' autocast; None: as the caller has it
        )
        self.bounds = tuple(bounds or default_bounds(self.num_scales, parallel=self.parallel))
        assert len(self.bounds) == self.num_scales - 1, (self.bounds, self.view_sizes)
        first = build_backbone(backbone, weights=weights)
        copies = [build_backbone(backbone) for _ in range(0 if shared_backbone else self.num_scales - 1)]
        for each in (first, *copies):
            each.freeze(frozen_stages)
            if gates != "none":
                each.add_gates(gates, gated_stages)
        self.steered = any(gate.reads_query for gate in first.gates.values())
        for each in copies:  # every scale starts from the same weights, as in the paper
            each.load_state_dict(first.state_dict())
        self.backbones = nn.ModuleList([first, *copies])
        self.classifiers = nn.ModuleList([nn.Linear(first.channels, num_classes) for _ in self.view_sizes])
        attended = self.view_sizes if pooling == "attention" else ()
        self.attentions = nn.ModuleList(CellAttention(first.channels) for _ in attended)
        self.apns = nn.ModuleList(
            build_apn(
                apn,
                first,
                view_size=self.view_sizes[0] if self.parallel else size,
                bounds=bounds,
                scale=scale,
                sides=self.sides,
                parallel=self.parallel,
            )
            for scale, (size, bounds) in enumerate(zip(self.view_sizes, self.bounds, strict=False), start=1)
        )
        self.fusion = nn.Linear(first.channels * self.num_scales, num_classes)
        self.levels = (
            LevelHeads(first.channels, self.num_scales, num_classes, level_heads) if level_heads else None
        )
        self.register_buffer("mean", torch.tensor(first.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(first.std).view(3, 1, 1), persistent=False)

    def forward(
        self,
        images: Tensor,
        *,
        num_scales: int | None = None,
        noise: Tensor | None = None,
        move_samples: bool = True,
    ) -> RACNNOutput:
        """Classify the images, and ever smaller regions of them.

        No loss of one scale reaches the backbone or classifier of another: an APN reads detached features, and coarser
        regions are detached, so that it reaches the APN that proposed its region at most. What is frozen builds no graph.

        Args:
            images: [B, 3, H, W], floating in [0, 1] or uint8, of any size; larger than ``view_sizes[0]`` gives the
                finer scales more detail to zoom into.
            num_scales: Run only the first scales.
            noise: [B, R, 3] in [-1, 1], R at least the number of finer scales that are run: jitters the proposals before
                they are cropped, see :func:`racnn.ops.regions.jitter`.
            move_samples: Whether derivatives in a region follow its sample points, see :func:`racnn.ops.crop.zoom`.
        """
        last = self.num_scales if num_scales is None else num_scales
        assert 1 <= last <= self.num_scales, num_scales
        source = self.normalise(images)
        scales: list[ScaleOutput] = []
        for _ in range(last):
            scales.append(self.look(source, scales, noise=noise, move_samples=move_samples))
        return self.output(scales)

    def output(self, looks: Sequence[ScaleOutput]) -> RACNNOutput:
        """Return the output of the first scales, or of all."""
        complete = len(looks) == self.num_scales
        return RACNNOutput(list(looks), self.fuse([each.descriptor for each in looks]) if complete else None)

    def look(
        self,
        source: Tensor,
        before: Sequence[ScaleOutput],
        *,
        noise: Tensor | None = None,
        move_samples: bool = True,
    ) -> ScaleOutput:
        """Return the output of the scale that follows after others.

        Args:
            source: [B, 3, H, W], normalised.
            before: Output of the coarser scales.
            noise: [B, R, 3], see :meth:`forward`; the last of ``before`` then holds the jittered proposal.
            move_samples: Whether derivatives in a region follow its sample points.
        """
        scale = len(before) + 1
        parent = before[-1] if before else None
        if parent is not None and parent.proposal is not None and noise is not None:
            low, high = self.bounds[scale - 2]
            parent.proposal = jitter(parent.proposal, noise[:, scale - 2], low=low, high=high)
        region = parent.next_region if parent else whole(source.shape[0], device=source.device)
        view = self.crop(scale, source, region, parent=parent, move_samples=move_samples)
        first = before[0] if before else None
        return self.forward_scale(scale, view, region, first=first, query=self.query(before))

    def forward_scale(
        self,
        scale: int,
        view: Tensor,
        region: Tensor,
        *,
        first: ScaleOutput | None = None,
        query: Tensor | None = None,
    ) -> ScaleOutput:
        """Classify a view and propose the region to crop next.

        Args:
            scale: Counted from 1.
            view: [B, 3, h, w], normalised.
            region: [B, 3], where the view lies in the image.
            first: Output of the first scale, from which parallel regions are proposed; without it these are not.
            query: [B, C], what steers the gates, from :meth:`query`.
        """
        apn = self.apns[scale - 1] if scale < self.num_scales else None
        inner = None
        if apn is not None and apn.reads == "inner":
            features, inner = self._extract_with_inner(scale, view, query)
        else:
            features = self.extract_raw(scale, view, query)
        attention = self._attention(scale, features)
        descriptor = self.describe(weigh(features, attention))
        logits = self.classifiers[scale - 1](descriptor)
        seen = ScaleOutput(region, view, features, descriptor, logits, None, attention)
        if apn is not None and inner is not None:
            seen.proposal = apn(inner.detach())
        elif apn is not None and (not self.parallel or scale == 1):
            seen.proposal = self.propose(scale, scale, seen)
        elif apn is not None and first is not None:
            seen.proposal, seen.frame = self.propose(scale, 1, first), first.region
        return seen

    def query(self, before: Sequence[ScaleOutput]) -> Tensor | None:
        """Return what steers the gates of the look after others, [B, C] and detached; None: nothing."""
        return before[-1].descriptor.detach() if self.steered and before else None

    def propose(self, region: int, scale: int, seen: ScaleOutput) -> Tensor:
        """Return what the network for a region, counted from 1, proposes from the features of a scale, [B, 3] in its frame."""
        apn = self.apns[region - 1]
        if apn.reads == "evidence" and self.parallel and region > 2:
            assert self.levels is not None
            groups = self.levels.best_groups(region - 3, seen.descriptor)
            proposal: Tensor = apn(self.evidence(scale, seen.weighed, groups, level=region - 3))
        elif apn.reads == "evidence":
            proposal = apn(self.evidence(scale, seen.weighed, seen.logits.argmax(dim=1)))
        else:
            proposal = apn(seen.features.detach())
        return proposal

    def _attention(self, scale: int, features: Tensor) -> Tensor | None:
        """Return how much the cells of a scale's features count, [B, h, w]; None: all alike."""
        return self.attentions[scale - 1](features) if self.attentions else None

    def weighed(self, scale: int, features: Tensor) -> Tensor:
        """Return features as a scale's descriptor is pooled from them."""
        return weigh(features, self._attention(scale, features))

    def describe(self, features: Tensor) -> Tensor:
        """Return the descriptors [B, C], float32, of features [B, C, h, w]."""
        mean = features.float().mean(dim=(2, 3))
        return F.normalize(mean * _root_gain(mean), dim=1) if self.root else mean

    def gain(self, features: Tensor) -> Tensor | None:
        """Return what each channel's mean is multiplied by in the descriptor, [B, C] but for one factor a photo; None: 1."""
        return _root_gain(features.float().mean(dim=(2, 3))) if self.root else None

    @torch.no_grad()
    def evidence(self, scale: int, features: Tensor, classes: Tensor, *, level: int | None = None) -> Tensor:
        """Return what each cell [B, h, w] of a scale's features adds to the logits of classes [B], where that is positive.

        With ``level`` they are groups of this coarser level, counted from 0, and the head that reads the first look is asked.

        The class activation against the mean of all classes (Zhou et al., CVPR 2016), see
        :func:`racnn.models.racnn.losses.response_map`.
        """
        head = self.classifiers[scale - 1]
        if level is not None:
            assert self.levels is not None
            head = self.levels.whole[level]
        weight = head.get_parameter("weight")
        return response_map(features, weight=weight, labels=classes, gain=self.gain(features))

    @torch.no_grad()
    def difference(self, scale: int, features: Tensor, classes: Tensor, others: Tensor) -> Tensor:
        """Return what each cell [B, h, w] adds to the logits of classes [B] over those of others [B], where that is positive.

        The class activation of a difference: not what makes a class probable, which the similar one shares, but what tells the
        two apart (Zhang et al., "Finer-CAM: Spotting the Difference Reveals Finer Details for Visual Explanation", CVPR 2025).
        Their sum less that of what speaks for the others is the difference of the logits, but for the biases.
        """
        weight = self.classifiers[scale - 1].get_parameter("weight")
        contrast, mean = weight[classes] - weight[others], features.float().mean(dim=(2, 3))
        if self.root:
            gain = _root_gain(mean)
            contrast = contrast * gain / (mean * gain).norm(dim=1, keepdim=True).clamp(min=1e-12)
        return evidence_map(features, contrast / features[0, 0].numel())

    def classify_proposal(self, scale: int, source: Tensor, parent: ScaleOutput, proposal: Tensor) -> Tensor:
        """Return the logits [B, num_classes] of a scale if the scale before had proposed another region.

        Args:
            scale: Counted from 1; at least 2.
            source: [B, 3, H, W], normalised.
            parent: Output of the scale before.
            proposal: [B, 3], in the frame of the parent's view.
        """
        parent = dataclasses.replace(parent, proposal=proposal)
        view = self.crop(scale, source, parent.next_region, parent=parent)
        return self.forward_scale(scale, view, parent.next_region, query=self.query([parent])).logits

    def crop(
        self,
        scale: int,
        source: Tensor,
        region: Tensor,
        *,
        parent: ScaleOutput | None = None,
        factor: float = 1.0,
        move_samples: bool = True,
    ) -> Tensor:
        """Return the view of a scale: the region of the source, sampled to its size and under its mask.

        Args:
            scale: Counted from 1; the first has no mask.
            source: [B, 3, H, W], normalised.
            region: [B, 3] in the frame of the source.
            parent: Output of the scale before; with ``zoom_from='parent'`` its proposal is cropped from its view instead.
            factor: Make the view so many times as large, in whole cells of the feature map.
            move_samples: See :meth:`forward`.
        """
        side = self.view_sizes[scale - 1] if factor == 1.0 else self._enlarged_side(scale, factor)
        if scale == 1 and source.shape[-2:] == (side, side):
            return source
        if self.zoom_from == "parent" and parent is not None and parent.proposal is not None:
            source, region = parent.view.detach(), parent.proposal
        steepness = frame_steepness(self.steepness, source.shape[-1]) if self.mask and scale > 1 else None
        return self.sample(
            source,
            region,
            (side, side),
            antialias=self.antialias,
            steepness=steepness,
            move_samples=move_samples,
        )

    def extract(self, scale: int, view: Tensor) -> Tensor:
        """Return the features [B, C, h', w'] of a normalised view [B, 3, h, w], as they are pooled."""
        return self.weighed(scale, self.extract_raw(scale, view))

    def extract_raw(self, scale: int, view: Tensor, query: Tensor | None = None) -> Tensor:
        """Return the same before their cells are weighed; ``query`` from :meth:`query`."""
        with autocast_as(self.compute_dtype, view):
            return self.backbone(scale)(view, query)

    @torch.no_grad()
    def extract_frozen(self, scale: int, view: Tensor) -> Tensor:
        """Return what the frozen blocks of a scale's backbone make of a normalised view, in the type that it computes in."""
        with autocast_as(self.compute_dtype, view):
            maps: Tensor = self.backbone(scale).frozen_part()(view)
        return maps if self.compute_dtype is None else maps.to(self.compute_dtype)

    def extract_rest(self, scale: int, maps: Tensor) -> Tensor:
        """Return the features [B, C, h', w'] of what :meth:`extract_frozen` returned."""
        with autocast_as(self.compute_dtype, maps):
            features = self.backbone(scale).forward_rest(maps)
        return self.weighed(scale, features)

    @torch.no_grad()
    def extract_with_inner(
        self, scale: int, view: Tensor, query: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the same, and the features that the backbone's last block is given, see :meth:`Backbone.forward_with_inner`."""
        return self._extract_with_inner(scale, view, query)

    def _extract_with_inner(
        self, scale: int, view: Tensor, query: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        with autocast_as(self.compute_dtype, view):
            return self.backbone(scale).forward_with_inner(view, query)

    @torch.no_grad()
    def enlarged_view(self, scale: int, images: Tensor, output: RACNNOutput, factor: float) -> Tensor:
        """Return what a scale was shown, sampled so many times as large: its backbone makes a finer map of it.

        Args:
            scale: Counted from 1.
            images: The images that ``output`` was made from.
            output: Output of at least this scale.
            factor: Factor of the view's side; 1 returns the view as it was.
        """
        seen = output.scales[scale - 1]
        if factor == 1.0:
            return seen.view
        parent = output.scales[scale - 2] if scale > 1 else None
        return self.crop(scale, self.normalise(images), seen.region, parent=parent, factor=factor)

    def fuse(self, descriptors: Sequence[Tensor]) -> Tensor:
        """Return fused logits: each descriptor L2-normalised, concatenated, one linear layer (10); in agreement with level heads."""
        joined = torch.cat([F.normalize(d, dim=1) for d in descriptors], dim=1)
        fused: Tensor = self.fusion(joined)
        return fused if self.levels is None else self.levels.consistent(fused, joined)

    def init_fusion(self, norms: Sequence[float], weights: Sequence[float]) -> None:
        """Set the fusion layer so that it first gives the weighted sum of the scales' logits.

        Args:
            norms: Mean L2 norm of each scale's descriptors, which the fusion divides by.
            weights: Weight of each scale.
        """
        heads = [(each.get_parameter("weight"), each.get_parameter("bias")) for each in self.classifiers]
        init_joined(self.fusion, heads, norms, weights)

    @torch.no_grad()
    def copy_scale(self, source: int, target: int) -> None:
        """Copy the backbone and classifier of one scale to another."""
        self.backbone(target).load_state_dict(self.backbone(source).state_dict())
        if self.attentions:
            self.attentions[target - 1].load_state_dict(self.attentions[source - 1].state_dict())
        self.classifiers[target - 1].load_state_dict(self.classifiers[source - 1].state_dict())

    def take_levels(self, names: Sequence[str], groups: Sequence[Sequence[str]]) -> None:
        """Learn which classes belong together.

        Args:
            names: Names of the levels, see :class:`racnn.data.groups.Levels`.
            groups: The group of each class by level.

        Raises:
            ConfigError: ``model.level_heads`` names no such levels, or not in their order.
        """
        if self.levels is None:
            return
        names = names[1:]
        if unknown := [name for name in self.levels.names if name not in names]:
            raise ConfigError(
                f"model.level_heads: data.levels knows no level '{unknown[0]}'{did_you_mean(unknown[0], names)}; expected some of "
                f"{', '.join(names)}"
            )
        places = [names.index(name) for name in self.levels.names]
        if places != sorted(set(places)):
            raise ConfigError(
                f"model.level_heads: expected levels once and in the order of data.levels, the finest first: {', '.join(names)}"
            )
        self.levels.set_groups([groups[1 + place] for place in places])

    def attention(self, scale: int) -> list[nn.Module]:
        """Return what weighs the cells of a scale's features: nothing, or one module."""
        return [self.attentions[scale - 1]] if self.attentions else []

    @torch.no_grad()
    def round_weights(self) -> None:
        """Round what the backbones multiply by to the type that they compute in, so that float32 sees the same network.

        It changes nothing there: autocast rounds before each product. But heads in closed form are fitted to the rounded network, and
        answer one photo in a hundred less where another machine does not round.
        """
        if self.compute_dtype is None:
            return
        for module in self.backbones.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                for parameter in module.parameters(recurse=False):
                    parameter.copy_(parameter.to(self.compute_dtype))

    def backbone(self, scale: int) -> Backbone:
        """Return the backbone of a scale."""
        return cast(Backbone, self.backbones[min(scale, len(self.backbones)) - 1])

    def normalise(self, images: Tensor) -> Tensor:
        """Return images, floating in [0, 1] or uint8, with the backbone's mean and standard deviation."""
        if images.dtype == torch.uint8:  # a copy, of which no further ones are made
            return images.float().div_(255.0).sub_(self.mean).div_(self.std)
        return (images - self.mean) / self.std

    def to_pixels(self, view: Tensor) -> Tensor:
        """Return a normalised view as an image in [0, 1], the inverse of :meth:`normalise`."""
        return (view * self.std + self.mean).clamp(0.0, 1.0)

    def check_views(self, enlargements: Iterable[tuple[int, float]] = ()) -> None:
        """Refuse at once a size of view that would be refused after hours of training. Changes nothing.

        Args:
            enlargements: Pairs of a scale and a factor for :meth:`enlarged_view`.

        Raises:
            ConfigError: A backbone takes views of one size only, as many transformers do; or its map has another number of
                cells than the paper's APN was built for.
        """
        for scale, size in enumerate(self.view_sizes, start=1):
            apn = self.apns[scale - 1] if scale < self.num_scales else None
            apn = None if apn is None or apn.reads != "features" or (self.parallel and scale > 1) else apn
            if reason := reason_against_view(self.backbone(scale), size, apn):
                raise ConfigError(
                    f"model.view_sizes: views of {size} px do not suit scale {scale} ({reason}); a multiple of "
                    f"{self.backbone(scale).stride} suits most backbones, and some take only one size"
                )
        for scale, factor in enlargements:
            side = self._enlarged_side(scale, factor)
            if factor > 1.0 and (reason := reason_against_view(self.backbone(scale), side)):
                raise ConfigError(
                    f"schedule: the apn_init phase of scales: [{scale}] has enlarge: {factor:g}, but the backbone takes "
                    f"no view of {side} px ({reason}); set enlarge to 1 there"
                )

    def _enlarged_side(self, scale: int, factor: float) -> int:
        """Return the side in whole cells of the feature map; a part of one would shift the map."""
        stride = self.backbone(scale).stride
        return max(1, round(factor * self.view_sizes[scale - 1] / stride)) * stride


@torch.no_grad()
def init_joined(
    layer: nn.Module,
    heads: Iterable[tuple[Tensor, Tensor]],
    norms: Sequence[float],
    weights: Sequence[float],
) -> None:
    """Set a layer that reads joined descriptors to give the weighted sum of what heads make of each.

    Args:
        layer: Linear.
        heads: Weight and bias of each scale's head.
        norms: Mean L2 norm of each scale's descriptors, which joining divides by.
        weights: Weight of each scale.
    """
    weight, bias = layer.get_parameter("weight"), layer.get_parameter("bias")
    bias.zero_()
    blocks = weight.chunk(len(norms), dim=1)
    for block, (own, offset), norm, count in zip(blocks, heads, norms, weights, strict=True):
        block.copy_(count * norm * own)
        bias.add_(count * offset)


def weigh(features: Tensor, attention: Tensor | None) -> Tensor:
    """Return features [B, C, h, w] times how much their cells [B, h, w] count."""
    return features if attention is None else features * attention[:, None].to(features.dtype)


def _root_gain(mean: Tensor) -> Tensor:
    """Return the factor [B, C] that makes means their signed square roots, but for means near 0, where roots are too steep."""
    size = mean.abs()
    return (size + FLAT * size.mean(dim=1, keepdim=True).detach() + 1e-12).rsqrt()
