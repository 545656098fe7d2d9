"""The networks. ``build_model`` turns a configuration into one; everything else takes keyword arguments."""

from __future__ import annotations

from racnn.models.backbone import BACKBONES, Backbone, build_backbone
from racnn.models.racnn.model import RACNN, RACNNOutput
from racnn.sections import ModelConfig

__all__ = ["BACKBONES", "RACNN", "Backbone", "RACNNOutput", "build_backbone", "build_model"]


def build_model(config: ModelConfig, *, num_classes: int, weights: bool = True) -> RACNN:
    """Return the network that a configuration describes.

    Args:
        config: The model section.
        num_classes: Number of classes of the dataset.
        weights: Load ``config.weights``; False when a checkpoint will fill the network anyway.
    """
    return RACNN(
        num_classes=num_classes,
        backbone=config.backbone,
        view_sizes=config.view_sizes,
        weights=config.weights if weights else None,
        frozen_stages=config.frozen_stages,
        shared_backbone=config.shared_backbone,
        apn=config.apn,
        bounds=config.region_bounds(),
        crop=config.crop,
        zoom_from=config.zoom_from,
        antialias=config.antialias,
        mask=config.mask,
        steepness=config.steepness,
    )
