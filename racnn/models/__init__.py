"""The networks, by family. ``build_model`` turns a configuration into one; everything else takes keyword arguments."""

from __future__ import annotations

from typing import Any

from racnn.models.backbone import BACKBONES, Backbone, build_backbone
from racnn.models.family import Family
from racnn.models.racnn import FAMILY as RACNN_FAMILY
from racnn.models.racnn.model import RACNN, RACNNOutput
from racnn.models.recurrent import FAMILY as RECURRENT_FAMILY
from racnn.sections import ModelSection

__all__ = [
    "BACKBONES",
    "FAMILIES",
    "RACNN",
    "Backbone",
    "Family",
    "RACNNOutput",
    "build_backbone",
    "build_model",
]

FAMILIES: dict[str, Family] = {"racnn": RACNN_FAMILY, "recurrent": RECURRENT_FAMILY}


def build_model(config: ModelSection, *, num_classes: int, weights: bool = True) -> Any:
    """Return the network that a configuration describes, a :class:`racnn.models.family.Network`.

    Args:
        config: The model section.
        num_classes: Number of classes of the dataset.
        weights: Load the weights that it names; False when a checkpoint will fill the network anyway.
    """
    return FAMILIES[config.family].build(config, num_classes=num_classes, weights=weights)
