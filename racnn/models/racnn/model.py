"""RA-CNN: look at the whole image, propose a region, zoom, look again. The file to read first.

    image -> view 1 -> backbone 1 -> features -> descriptor -> classifier 1
                                        \\-> APN 1 -> region 1 -> zoom -> view 2 -> backbone 2 -> ... -> scale S

Fu, Zheng, Mei, "Look Closer to See Better: Recurrent Attention Convolutional Neural Network for Fine-grained Image
Recognition", CVPR 2017.

Convention
    Regions are (tx, ty, tl), see :mod:`racnn.ops.regions`. ``regions[s]`` is what APN s + 1 proposes, in the frame of
    its own view; ``places[s]`` is where view s + 1 lies in the image, the regions composed. Scales are counted from 1
    in text and logs, lists from 0.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from racnn.errors import ConfigError
from racnn.models.backbone import Backbone, build_backbone
from racnn.models.racnn.apn import CompactAPN, PaperAPN
from racnn.ops.crop import zoom
from racnn.ops.mask import frame_steepness
from racnn.ops.regions import compose, jitter, to_boxes_xyxy, whole
from racnn.sections import DEFAULT_BOUNDS


@dataclass
class RACNNOutput:
    """What one pass saw and said; lists hold one entry a scale that was run.

    Attributes:
        logits: [B, num_classes] per scale.
        fused: [B, num_classes] logits of the fusion layer; None unless all scales were run.
        regions: [B, 3] per APN that was run, in the frame of the view it was proposed from.
        places: [B, 3] per scale, where its view lies in the image; ``places[0]`` is the whole image. A region that was
            proposed and not looked at has its place here too.
        views: [B, 3, h, w] per scale, normalised.
        features: [B, C, h, w] per scale.
        descriptors: [B, C] per scale, float32.
    """

    logits: list[Tensor] = field(default_factory=list)
    fused: Tensor | None = None
    regions: list[Tensor] = field(default_factory=list)
    places: list[Tensor] = field(default_factory=list)
    views: list[Tensor] = field(default_factory=list)
    features: list[Tensor] = field(default_factory=list)
    descriptors: list[Tensor] = field(default_factory=list)

    def boxes_xyxy(self, size: tuple[int, int]) -> list[Tensor]:
        """Return the place of each finer view as pixel boxes [B, 4] of an image of size (h, w)."""
        return [to_boxes_xyxy(place, size) for place in self.places[1:]]

    def chosen(self, which: Tensor) -> RACNNOutput:
        """Return the same of some of the images.

        Args:
            which: [K] indices.
        """
        lists = {
            name: [tensor[which] for tensor in getattr(self, name)]
            for name in ("logits", "regions", "places", "views", "features", "descriptors")
        }
        return RACNNOutput(fused=None if self.fused is None else self.fused[which], **lists)


class RACNN(nn.Module):
    """The recursion over scales.

    Args:
        num_classes: Number of classes of every classifier.
        backbone: A name for :func:`racnn.models.backbone.build_backbone`.
        view_sizes: Side in pixels of each scale's square view; their number is the number of scales, from 1 up.
        weights: What every backbone starts from: None, 'imagenet' or a file.
        frozen_stages: So many first stages of every backbone are never trained, see :meth:`Backbone.freeze`.
        shared_backbone: One backbone for all scales; the paper has one each.
        apn: 'compact', 'paper' or 'compact_unnormalised', see :mod:`racnn.models.racnn.apn`.
        bounds: Least and largest side of each region, as fractions of its view's side.
        zoom_from: 'source' samples every view from the image through composed regions: no double interpolation,
            and real detail where the image has more pixels than scale 1 shows. 'parent' samples it from the
            previous view, as the paper does.
        antialias: Widen the sampling kernel when a region holds more pixels than its view.
        mask: Multiply each finer view by its soft box mask (equations 4 to 6).
        steepness: The paper's k, per pixel of the image that is cut.
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
        bounds: Sequence[tuple[float, float]] | None = None,
        zoom_from: str = "source",
        antialias: bool = True,
        mask: bool = True,
        steepness: float = 10.0,
    ) -> None:
        super().__init__()
        assert zoom_from in ("source", "parent"), zoom_from
        self.view_sizes = tuple(view_sizes)
        self.num_scales = len(self.view_sizes)
        self.num_classes = num_classes
        self.zoom_from = zoom_from
        self.antialias = antialias
        self.mask = mask
        self.steepness = steepness
        self.compute_dtype: torch.dtype | None = (
            None  # of the backbones' autocast; None: as the caller has it
        )
        self.bounds = tuple(bounds or [DEFAULT_BOUNDS[min(s, 1)] for s in range(self.num_scales - 1)])
        assert len(self.bounds) == self.num_scales - 1, (self.bounds, self.view_sizes)
        num_backbones = 1 if shared_backbone else self.num_scales
        first = build_backbone(backbone, weights=weights)
        rest = [build_backbone(backbone) for _ in range(num_backbones - 1)]
        for other in rest:
            other.load_state_dict(
                first.state_dict()
            )  # every scale starts from the same weights, as in the paper
        for each in (first, *rest):
            each.freeze(frozen_stages)
        self.backbones = nn.ModuleList([first, *rest])
        self.classifiers = nn.ModuleList([nn.Linear(first.channels, num_classes) for _ in self.view_sizes])
        self.apns = nn.ModuleList(
            [_build_apn(apn, first, self.view_sizes[s], b, s) for s, b in enumerate(self.bounds)]
        )
        self.fusion = nn.Linear(first.channels * self.num_scales, num_classes)
        self.register_buffer("mean", torch.tensor(first.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(first.std).view(3, 1, 1), persistent=False)

    def forward(
        self,
        images: Tensor,
        *,
        scales: int | None = None,
        propose: bool = False,
        noise: Tensor | None = None,
        move_samples: bool = True,
    ) -> RACNNOutput:
        """Look, zoom and look again.

        No gradient crosses from one scale's classification loss to another scale's weights: an APN reads detached
        features, and a region moves only its own view. What is frozen builds no graph by itself.

        Args:
            images: [B, 3, H, W], floating in [0, 1] or uint8, of any size; larger than ``view_sizes[0]`` gives the
                finer scales more detail to zoom into.
            scales: Run only so many scales.
            propose: Let the last of them propose a region too, though nothing looks at it; not for the finest scale.
            noise: [B, num_regions, 3], see :func:`racnn.ops.regions.jitter`: jitter the regions before they are cut, as
                training of the finer scales wants.
            move_samples: Derivatives in a region follow its sample points, see :func:`racnn.ops.crop.zoom`.
        """
        last = self.num_scales if scales is None else scales
        assert 1 <= last <= self.num_scales, scales
        source = self.normalise(images)
        output = self.look(source)
        for _ in range(last - 1):
            self.look_closer(source, output, noise=noise, move_samples=move_samples)
        if propose:
            self.propose(output)
        return output

    def look(self, source: Tensor) -> RACNNOutput:
        """Look at the whole of a normalised source [B, 3, H, W]: the first scale."""
        place = whole(len(source), device=source.device)
        output = RACNNOutput(places=[place])
        self._see(output, self._cut(source, place, self.view_sizes[0], masked=False))
        return output

    def propose(self, output: RACNNOutput, *, noise: Tensor | None = None) -> None:
        """Propose a region from the last view: ``output`` gains a region and its place.

        Args:
            output: With fewer scales than the network has.
            noise: Jitter of the regions, see :meth:`forward`.
        """
        scale = len(output.regions)
        assert scale == len(output.logits) - 1, "the last region was not looked at"
        region = self.apns[scale](output.features[scale].detach())
        if noise is not None:
            low, high = self.bounds[scale]
            region = jitter(region, noise[:, scale], low=low, high=high)
        output.regions.append(region)
        output.places.append(compose(output.places[scale].detach(), region))

    def look_closer(
        self,
        source: Tensor,
        output: RACNNOutput,
        *,
        noise: Tensor | None = None,
        move_samples: bool = True,
    ) -> None:
        """Propose a region, cut it from the source and look at it: ``output`` gains a scale.

        Args:
            source: [B, 3, H, W], normalised; what ``output`` was made from.
            output: With fewer scales than the network has.
            noise: Jitter of the regions, see :meth:`forward`.
            move_samples: Whether sample points follow a region, see :meth:`forward`.
        """
        self.propose(output, noise=noise)
        region, place = output.regions[-1], output.places[-1]
        self._see(
            output, self._zoom_in(source, output.views[-1], region, place, len(output.views), move_samples)
        )

    def _see(self, output: RACNNOutput, view: Tensor) -> None:
        """Add to the output what the next scale makes of its view."""
        scale = len(output.logits)
        features = self._extract(scale, view)
        descriptor = features.float().mean(dim=(2, 3))
        output.logits.append(self.classifiers[scale](descriptor))
        output.views.append(view)
        output.features.append(features)
        output.descriptors.append(descriptor)
        if scale + 1 == self.num_scales:
            output.fused = self.fuse(output.descriptors)

    def look_at(self, source: Tensor, place: Tensor, *, scale: int) -> Tensor:
        """Return what a scale says when it is shown a place in the source, whatever the coarser scales would propose.

        Args:
            source: [B, 3, H, W], normalised; views are cut from it, so that ``zoom_from`` must be 'source'.
            place: [B, 3].
            scale: Counted from 1; at least 2.

        Returns:
            [B, num_classes].
        """
        assert self.zoom_from == "source"
        view = self._cut(source, place, self.view_sizes[scale - 1])
        return self.classifiers[scale - 1](self._extract(scale - 1, view).float().mean(dim=(2, 3)))

    def logits_at(self, source: Tensor, output: RACNNOutput, region: Tensor, *, number: int) -> Tensor:
        """Return what the next scale would say if a region were another one.

        Args:
            source: The images that ``output`` was made from, see :meth:`normalise`.
            output: Output of a pass over at least ``number`` scales.
            region: [B, 3] to put in the place of ``output.regions[number - 1]``, in the same frame.
            number: Number of the region, counted from 1.

        Returns:
            [B, num_classes] of scale ``number + 1``.
        """
        scale = number - 1
        place = compose(output.places[scale].detach(), region)
        view = self._zoom_in(source, output.views[scale], region, place, number)
        return self.classifiers[number](self._extract(number, view).float().mean(dim=(2, 3)))

    @torch.no_grad()
    def enlarged_features(self, images: Tensor, output: RACNNOutput, *, scale: int, factor: float) -> Tensor:
        """Return what a scale's backbone makes of its view enlarged: a finer map of where it responds.

        Args:
            images: The images that ``output`` was made from.
            output: Output of a pass over at least ``scale`` scales.
            scale: Counted from 1.
            factor: Factor of the view's side; 1 returns the features of ``output``.

        Returns:
            [B, C, h, w], some ``factor`` times as many cells a side, detached.
        """
        if factor == 1.0:
            return output.features[scale - 1].detach()
        return self._extract(scale - 1, self._enlarged_view(images, output, scale, factor))

    @torch.no_grad()
    def enlarged_features_with_inner(
        self, images: Tensor, output: RACNNOutput, *, scale: int, factor: float
    ) -> tuple[Tensor, Tensor]:
        """Return the same, and the features that the backbone's last block is given, see :meth:`Backbone.forward_with_inner`."""
        view = self._enlarged_view(images, output, scale, factor)
        with self._autocast(view):
            return self.backbone(scale).forward_with_inner(view)

    def _enlarged_view(self, images: Tensor, output: RACNNOutput, scale: int, factor: float) -> Tensor:
        if factor == 1.0:
            return output.views[scale - 1]
        side = self._enlarged_side(scale, factor)
        if self.zoom_from == "source" or scale == 1:
            return self._cut(self.normalise(images), output.places[scale - 1], side, masked=scale > 1)
        return self._cut(output.views[scale - 2], output.regions[scale - 2], side)

    @torch.no_grad()
    def check_views(self, enlargements: Iterable[tuple[int, float]] = ()) -> None:
        """Refuse at once a size of view that would be refused after hours of training. Changes nothing.

        Args:
            enlargements: Pairs of a scale, counted from 1, and a factor for :meth:`enlarged_features`.

        Raises:
            ConfigError: A backbone takes views of one size only, as many transformers do; or its map has another number of
                cells than the paper's APN was built for.
        """
        for scale, size in enumerate(self.view_sizes, start=1):
            if reason := self._reason_against(scale, size, propose=scale < self.num_scales):
                raise ConfigError(
                    f"model.view_sizes: views of {size} px do not suit scale {scale} ({reason}); a multiple of "
                    f"{self.backbone(scale).stride} suits most backbones, and some take only one size"
                )
        for scale, factor in enlargements:
            side = self._enlarged_side(scale, factor)
            if factor > 1.0 and (reason := self._reason_against(scale, side, propose=False)):
                raise ConfigError(
                    f"schedule: the apn_init phase of scales: [{scale}] has enlarge: {factor:g}, but the backbone takes "
                    f"no view of {side} px ({reason}); set enlarge to 1 there"
                )

    def _reason_against(self, scale: int, side: int, *, propose: bool) -> str:
        """Return why a scale cannot look at a view of a size, or propose a region of it; '' if it can."""
        try:
            # on the meta device shapes are known and nothing is computed
            tried = copy.deepcopy(self.backbone(scale)).to("meta").eval()
            features = tried(torch.zeros(1, 3, side, side, device="meta"))
            if propose:
                self.apns[scale - 1](torch.zeros(features.shape))
        except NotImplementedError:
            return ""  # an operation whose shapes are not known without computing it
        except (RuntimeError, AssertionError, ValueError) as error:
            return (str(error).splitlines() or [type(error).__name__])[0]
        return ""

    def _enlarged_side(self, scale: int, factor: float) -> int:
        """Return the side in whole cells of the feature map; a part of one would shift the map."""
        stride = self.backbone(scale).stride
        return max(1, round(factor * self.view_sizes[scale - 1] / stride)) * stride

    def fuse(self, descriptors: Sequence[Tensor]) -> Tensor:
        """Return fused logits: each descriptor normalised on its own, concatenated, one linear layer (10)."""
        return self.fusion(torch.cat([F.normalize(d, dim=1) for d in descriptors], dim=1))

    @torch.no_grad()
    def start_fusion_from_classifiers(self, norms: Sequence[float], weights: Sequence[float]) -> None:
        """Set the fusion layer so that it first gives the weighted sum of the scales' logits.

        Args:
            norms: Mean length of each scale's descriptors, which the normalisation takes away.
            weights: Weight of each scale.
        """
        self.fusion.bias.zero_()
        blocks = self.fusion.weight.chunk(self.num_scales, dim=1)
        for block, classifier, norm, weight in zip(blocks, self.classifiers, norms, weights, strict=True):
            block.copy_(weight * norm * classifier.get_parameter("weight"))
            self.fusion.bias.add_(weight * classifier.get_parameter("bias"))

    @torch.no_grad()
    def copy_scale(self, source: int, target: int) -> None:
        """Give scale ``target`` the backbone and classifier of scale ``source``, both counted from 1."""
        self.backbone(target).load_state_dict(self.backbone(source).state_dict())
        self.classifiers[target - 1].load_state_dict(self.classifiers[source - 1].state_dict())

    def backbone(self, scale: int) -> Backbone:
        """Return the backbone of a scale, counted from 1."""
        return cast(Backbone, self.backbones[min(scale, len(self.backbones)) - 1])

    def normalise(self, images: Tensor) -> Tensor:
        """Return images, floating in [0, 1] or uint8, with the backbone's mean and standard deviation."""
        images = images.float() / 255.0 if images.dtype == torch.uint8 else images
        return (images - self.mean) / self.std

    def to_pixels(self, view: Tensor) -> Tensor:
        """Return a normalised view as an image in [0, 1], the inverse of :meth:`normalise`."""
        return (view * self.std + self.mean).clamp(0.0, 1.0)

    def _extract(self, scale: int, view: Tensor) -> Tensor:
        with self._autocast(view):
            return self.backbone(scale + 1)(view)

    def _autocast(self, view: Tensor) -> contextlib.AbstractContextManager[object]:
        if self.compute_dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(view.device.type, dtype=self.compute_dtype)

    def _zoom_in(
        self,
        source: Tensor,
        view: Tensor,
        region: Tensor,
        place: Tensor,
        scale: int,
        move_samples: bool = True,
    ) -> Tensor:
        """Return what a scale, counted from 0, sees of a region of the view before it, which lies at a place in the source."""
        side = self.view_sizes[scale]
        if self.zoom_from == "source":
            return self._cut(source, place, side, move_samples=move_samples)
        return self._cut(view.detach(), region, side, move_samples=move_samples)

    def _cut(
        self, image: Tensor, region: Tensor, side: int, *, masked: bool = True, move_samples: bool = True
    ) -> Tensor:
        """Return the region of the image as a view of side x side, under its mask."""
        if not masked and image.shape[-2:] == (side, side):
            return image
        steepness = frame_steepness(self.steepness, image.shape[-1]) if masked and self.mask else None
        return zoom(
            image,
            region,
            (side, side),
            antialias=self.antialias,
            steepness=steepness,
            move_samples=move_samples,
        )


def _build_apn(
    kind: str, backbone: Backbone, view_size: int, bounds: tuple[float, float], scale: int
) -> nn.Module:
    if kind == "paper":
        cells = view_size // backbone.stride
        return PaperAPN(channels=backbone.channels, cells=cells, bounds=bounds, pool=scale == 0)
    assert kind in ("compact", "compact_unnormalised"), kind
    return CompactAPN(channels=backbone.channels, bounds=bounds, normalised=kind == "compact")
