"""The sections of a configuration that say what data and network a run has: every key with its type, range and default.

One knob has one owner and one default. What a phase of training can be told stands with the phases of a model family.
"""

from __future__ import annotations

import re
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Side = Annotated[float, Field(gt=0.0, le=1.0)]
Bounds = tuple[Side, Side]
Seed = Annotated[int, Field(ge=0, lt=2**63)]  # what torch takes
Pixels = Annotated[int, Field(ge=8, le=4096)]
LEAST_SCENE = 256  # pixels
MOST_SCALES = 16
MOST_IDS = 10**6  # in a range of class ids
SIGMA = 0.5
DEFAULT_BOUNDS: tuple[Bounds, ...] = ((0.2, 0.95), (0.3, 0.8))
PARALLEL_BOUNDS: tuple[Bounds, ...] = ((0.2, 0.95), (0.1, 0.4))  # of the photo, not of the view before


class Section(BaseModel):
    """A part of a configuration: unknown keys are refused, values are checked and then fixed."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


def _expanded(path: str) -> str:
    """Return a path with the home folder that its ~ stands for."""
    return str(Path(path).expanduser()) if path.startswith("~") else path


class RunConfig(Section):
    """What names and paces a run."""

    out: str = "runs/default"
    seed: Seed = 0
    save_every: int = Field(
        0, ge=0, description="steps between checkpoints; 0: at the end of each epoch only"
    )
    log_every: int = Field(10, ge=1, description="steps between rows of metrics.jsonl")
    num_preview: int = Field(8, ge=0, description="validation photos drawn into TensorBoard")
    micro_batch: int = Field(
        0,
        ge=0,
        description="photos of a batch on the device at a time, their gradients summed; 0: all. Batch norm sees only these",
    )
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    channels_last: bool = True
    deterministic: bool = Field(
        False, description="only algorithms that give the same bits every time, as a CPU has them anyway"
    )
    compile: bool = Field(
        False, description="torch.compile the backbones; minutes at the start of each phase"
    )
    activation_checkpointing: bool = Field(
        False, description="keep few activations and compute the others again: less memory, a third more time"
    )

    @field_validator("out")
    @classmethod
    def _home_is_meant(cls, value: str) -> str:
        return _expanded(value)

    @model_validator(mode="after")
    def _compiled_or_computed_again(self) -> RunConfig:
        if self.compile and self.activation_checkpointing:
            raise ValueError("compile and activation_checkpointing exclude each other: choose one")
        return self


class AugmentConfig(Section):
    """Random changes of the training photos; the boxes and part points follow."""

    crop: Side = Field(0.875, description="share of the photo's side that the random crop keeps; 1: no crop")
    flip: bool = True
    color: Fraction = Field(0.2, description="strength of brightness, contrast and saturation jitter")


class SyntheticConfig(Section):
    """Size of the built-in set of drawn birds."""

    num_train: int = Field(2000, ge=16, le=1_000_000)
    num_test: int = Field(1000, ge=8, le=1_000_000)
    seed: Seed = 0


class DigitsConfig(Section):
    """How the digits of data.dataset digits are put on their canvas, whose side is data.source_size."""

    count: Literal[1, 2] = Field(1, description="digits a canvas; of two the class is the pair")
    clutter: int = Field(0, ge=0, le=64, description="pieces of other digits beside them")
    num_train: int = Field(0, ge=0, description="only the first so many training digits; 0: all")


class DataConfig(Section):
    """Which photos, how they become square sources, and how they are split and batched."""

    dataset: str = "cub200"
    root: Path | None = None
    classes: str | None = Field(None, description="subset by class id, such as '1-10,14'")
    exclude: Path | None = Field(
        None, description="a list of photos to leave out, one name a line, as `racnn data verify` writes it"
    )
    on_error: Literal["fail", "skip"] = Field(
        "fail", description="skip: read every photo beforehand and leave out the damaged ones"
    )
    most_skipped: Fraction = Field(
        0.01, description="skip: larger share of damaged photos is an error, if they are several; 0: any is"
    )
    cache: Path | None = Field(
        None, description="folder for decoded, resized training photos, written once before training"
    )
    source_size: Pixels = 448
    scene_size: int = Field(
        0,
        ge=0,
        le=8192,
        description="put each photo's object, small, into a wide scene of so many pixels, see racnn/data/sources/scene.py; 0: no",
    )
    resize: Literal["squash", "crop"] = "squash"
    val_fraction: float = Field(0.1, gt=0.0, lt=1.0)
    split_seed: Seed = 0
    held_out_fraction: float = Field(
        0.0, ge=0.0, le=0.5, description="share of the training photos kept for phases with photos: held_out"
    )
    levels: str | None = Field(
        None,
        description="groups of the classes: a CSV file, cub200, drawings, or folders that class folders lie in; for answers at the level that is sure",
    )
    balance: Literal["none", "weights", "sampling"] = Field(
        "none", description="rare classes: weigh their losses more, or draw their photos more often"
    )
    batch_size: int = Field(16, ge=1)
    eval_batch_size: int = Field(32, ge=1)
    num_workers: int = Field(2, ge=0, le=256)
    augment: AugmentConfig = AugmentConfig()
    synthetic: SyntheticConfig = SyntheticConfig()
    digits: DigitsConfig = DigitsConfig()

    @field_validator("scene_size")
    @classmethod
    def _scene_has_room(cls, value: int) -> int:
        if 0 < value < LEAST_SCENE:
            raise ValueError(f"expected 0 for no scenes, or at least {LEAST_SCENE}, got {value}")
        return value

    @field_validator("classes", mode="before")
    @classmethod
    def _classes_are_ranges(cls, value: Any) -> Any:
        if isinstance(value, int) and not isinstance(value, bool):  # YAML reads a single id as a number
            value = str(value)
        if isinstance(value, str):
            parse_ranges(value)
        return value


class ModelSection(Section):
    """What the ``model`` section of every family has."""

    family: str = Field("racnn", description="kind of network, see racnn/models")
    backbone: str = ""
    weights: str | None = Field(
        None, description="null, 'imagenet', or the path of a .pth or .safetensors file"
    )
    view_sizes: tuple[Pixels, ...] = Field((448, 224, 224), min_length=1, max_length=MOST_SCALES)

    @field_validator("weights")
    @classmethod
    def _home_is_meant(cls, value: str | None) -> str | None:
        return value if value is None else _expanded(value)

    @property
    def num_scales(self) -> int:
        """How many times the network looks."""
        return len(self.view_sizes)

    @property
    def has_trunk(self) -> bool:
        """Whether a backbone of several layers reads the views."""
        return True

    @property
    def first_is_whole(self) -> bool:
        """Whether look 1 sees all of the photo."""
        return True

    @property
    def remembers(self) -> bool:
        """Whether each answer is of all looks so far, not of one by itself."""
        return False

    def region_bounds(self) -> tuple[Bounds, ...]:
        """Return (least, largest) side for each region, as a fraction of the view that it is cut from."""
        return default_bounds(self.num_scales)


class ModelConfig(ModelSection):
    """RA-CNN: backbone, scales, attention proposal networks and how views are cut."""

    backbone: str = "vgg16"
    frozen_stages: int = Field(
        0, ge=0, description="first stages of the backbone, each up to a pooling, that stay as loaded"
    )
    shared_backbone: bool = False
    apn: Literal["compact", "paper", "compact_unnormalised", "response"] = Field(
        "compact",
        description="response: read from the map, set by a looks phase; compact_unnormalised: as in checkpoints of format 1",
    )
    descriptor: Literal["mean", "root"] = Field(
        "mean", description="of the features over the map; root: its signed square root, at length 1"
    )
    pooling: Literal["mean", "attention"] = Field(
        "mean",
        description="of the features over the map; attention: weighed cell by cell first, as is learnt",
    )
    level_heads: tuple[str, ...] = Field(
        (),
        description="coarser levels of data.levels that have heads and regions of their own, the finest first",
    )
    gates: Literal["none", "cbam", "sca"] = Field(
        "none", description="attention after stages of the trunk: cbam, or sca, steered by the look before"
    )
    gated_stages: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (), description="stages, each up to a pooling, that gates stand after; empty: all that are not frozen"
    )
    bounds: tuple[Bounds, ...] = Field(
        (), description="least and largest side of each region; empty: defaults"
    )
    sampler: str = Field(
        "zoom",
        description="what cuts the views: zoom, bilinear; crop, whole pixels; gaussian, as DRAW does; affine, rectangles",
    )
    regions: Literal["nested", "parallel"] = Field(
        "nested", description="proposed each from the view before; parallel: all from the first view"
    )
    sigma: float = Field(
        SIGMA, gt=0.0, le=4.0, description="sampler gaussian: standard deviation, in spacings of the samples"
    )
    zoom_from: Literal["source", "parent"] = "source"
    antialias: bool = True
    mask: bool = True
    steepness: float = Field(10.0, gt=0.0, description="the paper's k, per pixel of the image that is cut")

    @model_validator(mode="before")
    @classmethod
    def _crop_was_its_name(cls, values: Any) -> Any:
        """Take what checkpoints before the samplers hold."""
        if isinstance(values, dict) and values.get("crop") == "box":
            values = {key: value for key, value in values.items() if key != "crop"}
        return values

    @model_validator(mode="after")
    def _sampler_has_use_for_its_keys(self) -> ModelConfig:
        if self.sampler != "gaussian" and self.sigma != SIGMA:
            raise ValueError(f"sigma belongs to sampler gaussian and does nothing with {self.sampler}")
        if self.sampler == "gaussian" and not self.antialias:
            raise ValueError("antialias: false: a Gaussian is as wide as sigma says")
        return self

    @model_validator(mode="after")
    def _gates_have_use_for_their_stages(self) -> ModelConfig:
        if self.gates == "sca" and len(self.view_sizes) == 1:
            raise ValueError(
                "gates sca is steered by the look before, and with one of view_sizes there is none"
            )
        if self.gates == "none" and self.gated_stages:
            raise ValueError("gated_stages belongs to gates cbam and sca and does nothing with none")
        return self

    @model_validator(mode="after")
    def _level_heads_join_looks(self) -> ModelConfig:
        if self.level_heads and len(self.view_sizes) == 1:
            raise ValueError("level_heads join the looks: they take two view_sizes or more")
        return self

    @model_validator(mode="after")
    def _parallel_regions_fit(self) -> ModelConfig:
        if self.regions == "nested":
            return self
        if len(self.view_sizes) < 3:
            raise ValueError("regions parallel: takes three view_sizes or more; of two there is one region")
        if self.zoom_from == "parent":
            raise ValueError("zoom_from parent: parallel regions lie in the photo, not in the view before")
        most = 3 + len(self.level_heads)
        if self.apn == "response" and len(self.view_sizes) > most:
            raise ValueError(
                "apn response knows the object, where its class shows, and where the groups of level_heads do, so that regions "
                f"parallel take at most {most} view_sizes here, not {len(self.view_sizes)}"
            )
        return self

    @model_validator(mode="after")
    def _frozen_stages_were_loaded(self) -> ModelConfig:
        if self.frozen_stages and self.weights is None:
            raise ValueError(
                f"frozen_stages is {self.frozen_stages}, but without weights they would stay random; "
                "set weights or leave frozen_stages at 0"
            )
        return self

    @model_validator(mode="after")
    def _bounds_fit(self) -> ModelConfig:
        if self.bounds and len(self.bounds) != len(self.view_sizes) - 1:
            raise ValueError(
                f"bounds has {len(self.bounds)} pairs but {len(self.view_sizes)} view_sizes "
                f"make {len(self.view_sizes) - 1} regions"
            )
        for low, high in self.bounds:
            if low >= high:
                raise ValueError(f"bounds [{low}, {high}]: the least side must be below the largest")
        return self

    def region_bounds(self) -> tuple[Bounds, ...]:
        """Return (least, largest) side for each region, the defaults filled in."""
        return self.bounds or default_bounds(self.num_scales, parallel=self.regions == "parallel")


def default_bounds(num_scales: int, *, parallel: bool = False) -> tuple[Bounds, ...]:
    """Return (least, largest) side for each region of so many scales."""
    usual = PARALLEL_BOUNDS if parallel else DEFAULT_BOUNDS
    return tuple(usual[min(s, 1)] for s in range(num_scales - 1))


def members(annotation: Any) -> tuple[Any, ...]:
    """Return the types of a union, or the one type that an annotation is."""
    return get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)


def parse_ranges(text: str) -> list[int]:
    """Return the sorted ids named by a string such as ``'1-10,14'``.

    Raises:
        ValueError: The string is not a list of numbers and ranges.
    """
    ids: set[int] = set()
    for part in str(text).split(","):
        match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part)
        if not match:
            raise ValueError(f"expected ids such as '1-10,14', got '{text}'")
        low, high = int(match[1]), int(match[2] or match[1])
        if high < low:
            raise ValueError(f"range '{part.strip()}' runs backwards")
        if high - low > MOST_IDS:
            raise ValueError(f"range '{part.strip()}' names more than {MOST_IDS} ids")
        ids.update(range(low, high + 1))
    return sorted(ids)
