"""Networks that glimpse in sequence: RAM, DRAM, DT-RAM."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field, model_validator

from racnn.models.family import Family
from racnn.models.recurrent.network import Recurrent
from racnn.models.recurrent.phases import PHASES, SCHEDULES
from racnn.sections import MOST_SCALES, ModelSection, Pixels

GLIMPSE = 12


class RecurrentConfig(ModelSection):
    """A network that glimpses in sequence."""

    family: Literal["recurrent"] = "recurrent"
    backbone: str = Field("patch", description="patch: one layer over grey pixels; or as of RA-CNN")
    frozen_stages: int = Field(0, ge=0, description="first stages of the backbone that stay as loaded")
    view_sizes: tuple[Pixels, ...] = Field(
        (GLIMPSE,) * 6,
        min_length=2,
        max_length=MOST_SCALES,
        description="side of the patches of each look, all the same; their number is the number of looks",
    )
    patches: int = Field(
        3, ge=1, le=6, description="patches of a glimpse, each twice as wide as the one before"
    )
    side: float = Field(
        0.2, gt=0.0, le=1.0, description="side of the finest patch, as a fraction of the photo's"
    )
    first: Literal["random", "centre", "whole", "context"] = Field(
        "random",
        description="where look 1 is; random: in use the centre; context: where a small view of the whole sends it",
    )
    moves: Literal["learned", "random", "centre"] = Field(
        "learned", description="who says where the next look is; random and centre are controls"
    )
    memory: Literal["rnn", "lstm", "residual", "two_layer"] = "rnn"
    units: int = Field(256, ge=2, le=8192)
    grid: int = Field(
        0, ge=0, le=32, description="places a side that glimpses are moved to; 0: they go anywhere"
    )
    descriptor: Literal["mean", "root"] = Field(
        "mean", description="of the backbone's map; root: its signed square root, at one length"
    )
    coarse_map: int = Field(
        0,
        ge=0,
        le=32,
        description="cells a side of a map of the whole photo that the location network points into; 0: it has none",
    )
    answer: Literal["last", "added"] = Field(
        "last",
        description="what the memory says after a look; added: what look 1 says plus the mean of what later ones say",
    )
    dropout: float = Field(
        0.0, ge=0.0, lt=1.0, description="share of the features left out at random in training"
    )

    @property
    def has_trunk(self) -> bool:
        return self.backbone != "patch"

    @property
    def first_is_whole(self) -> bool:
        return self.first == "whole"

    @property
    def remembers(self) -> bool:
        return True

    @model_validator(mode="after")
    def _looks_fit(self) -> RecurrentConfig:
        if len(set(self.view_sizes)) > 1:
            raise ValueError("view_sizes: all looks of a recurrent network have patches of one size")
        if self.first == "context" and self.memory != "two_layer":
            raise ValueError(
                "first: context needs model.memory two_layer, whose second layer steers and does not answer; for other memories take "
                "centre, random or whole"
            )
        if self.moves != "learned" and self.first == "context":
            raise ValueError(
                f"first: context lets the location network send the first look, which model.moves {self.moves} does not ask; take "
                "centre, random or whole"
            )
        if self.grid == 1:
            raise ValueError("grid: 1 is one place; take 2 a side or more, or 0 for anywhere")
        if self.backbone == "patch" and self.descriptor != "mean":
            raise ValueError("descriptor: is of a backbone's map, and backbone patch has none")
        if self.first == "whole" and self.patches > 1:
            raise ValueError("first: whole is of one patch; set patches to 1")
        if 0.0 < self.coarse_map * self.side < 1.0:
            raise ValueError(
                f"coarse_map: {self.coarse_map} cells a side are too few to point at the border with a side of {self.side}; take at "
                f"least {math.ceil(1.0 / self.side)}"
            )
        if self.coarse_map == 1:
            raise ValueError(
                "coarse_map: 1 is the whole, which says nothing of where; take 2 a side or more, or 0"
            )
        if self.coarse_map and (self.first != "whole" or self.backbone == "patch" or self.moves != "learned"):
            raise ValueError(
                "coarse_map: is what a backbone makes of the whole photo for the location network; set first: whole, a backbone, "
                "and moves: learned"
            )
        if self.frozen_stages and self.weights is None:
            raise ValueError("frozen_stages: without weights they would stay random")
        if self.backbone == "patch" and self.weights is not None:
            raise ValueError("weights: backbone patch has none that could be loaded")
        return self


def build(config: RecurrentConfig, *, num_classes: int, weights: bool) -> Recurrent:
    """Return the network that the model section describes; without its weights where ``weights`` is False."""
    options = config.model_dump(exclude={"family", "weights"})
    return Recurrent(num_classes=num_classes, weights=config.weights if weights else None, **options)


FAMILY = Family(
    config=RecurrentConfig, build=build, phases=PHASES, schedules=SCHEDULES, example="looker.yaml"
)
