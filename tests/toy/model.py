"""A network that looks at the whole photo and at one square, the same of every photo, whose place it learns."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from racnn.models import build_backbone
from racnn.ops.crop import zoom
from racnn.ops.regions import squash, whole
from racnn.sections import ModelSection


class ToyConfig(ModelSection):
    """The ``model`` section of the family."""

    family: Literal["toy"] = "toy"
    backbone: str = "tiny"
    view_sizes: tuple[int, int] = (32, 24)
    hidden: int = 8


@dataclass
class ToyOutput:
    """See :class:`racnn.models.family.Output`."""

    logits: list[Tensor]
    regions: list[Tensor]
    proposals: list[Tensor]
    frames: list[Tensor]
    views: list[Tensor]
    descriptors: list[Tensor]
    fused: Tensor | None = None


class Toy(nn.Module):
    """See :class:`racnn.models.family.Network`."""

    def __init__(self, config: ToyConfig, num_classes: int) -> None:
        super().__init__()
        self.view_sizes, self.num_scales = config.view_sizes, config.num_scales
        self.bounds = config.region_bounds()
        self.compute_dtype: torch.dtype | None = None
        self.backbones = nn.ModuleList([build_backbone(config.backbone)])
        self.hidden = nn.Linear(self.backbones[0].channels, config.hidden)
        self.classifiers = nn.ModuleList(nn.Linear(config.hidden, num_classes) for _ in config.view_sizes)
        self.square = nn.Parameter(torch.zeros(1, 3))

    def forward(self, images: Tensor, *, num_scales: int | None = None) -> ToyOutput:
        source = images.float() / 255.0 if images.dtype == torch.uint8 else images
        proposal = squash(self.square, *self.bounds[0]).expand(len(source), 3)
        output = ToyOutput([], [], [proposal], [whole(len(source), device=source.device)], [], [])
        regions = [whole(len(source), device=source.device), proposal][:num_scales]
        for region, side, classifier in zip(regions, self.view_sizes, self.classifiers, strict=False):
            view = zoom(source, region, (side, side))
            descriptor = self.hidden(self.backbones[0](view).mean(dim=(2, 3))).relu()
            output.regions.append(region)
            output.views.append(view)
            output.descriptors.append(descriptor)
            output.logits.append(classifier(descriptor))
        return output

    def to_pixels(self, view: Tensor) -> Tensor:
        return view.clamp(0.0, 1.0)

    def check_views(self, enlargements=()) -> None:
        """Any size will do."""


def build(config: ToyConfig, *, num_classes: int, weights: bool) -> Toy:
    return Toy(config, num_classes)
