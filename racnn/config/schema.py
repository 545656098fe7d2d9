"""Every key of a configuration with its type, range and default.

One knob has one owner and one default, here. A YAML file names only what differs (:mod:`racnn.config.reading`).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    SerializerFunctionWrapHandler,
    Tag,
    field_validator,
    model_serializer,
    model_validator,
)

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Side = Annotated[float, Field(gt=0.0, le=1.0)]
Bounds = tuple[Side, Side]
Seed = Annotated[int, Field(ge=0, lt=2**63)]  # what torch takes
Pixels = Annotated[int, Field(ge=16, le=4096)]
MOST_SCALES = 16
MOST_IDS = 10**6  # in a range of class ids
DEFAULT_BOUNDS: tuple[Bounds, ...] = ((0.2, 0.95), (0.3, 0.8))


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


def _expanded(path: str) -> str:
    """Return a path with the home folder that its ~ stands for."""
    return str(Path(path).expanduser()) if path.startswith("~") else path


class RunConfig(_Section):
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


class AugmentConfig(_Section):
    """Random changes of the training photos; the boxes and part points follow."""

    crop: Side = Field(0.875, description="share of the photo's side that the random crop keeps; 1: no crop")
    flip: bool = True
    color: Fraction = Field(0.2, description="strength of brightness, contrast and saturation jitter")


class SyntheticConfig(_Section):
    """Size of the built-in set of drawn birds."""

    num_train: int = Field(2000, ge=16, le=1_000_000)
    num_test: int = Field(1000, ge=8, le=1_000_000)
    seed: Seed = 0


class DataConfig(_Section):
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
    most_skipped: Fraction = Field(0.01, description="skip: larger share of damaged photos is an error")
    cache: Path | None = Field(
        None, description="folder for decoded, resized training photos, written once before training"
    )
    source_size: Pixels = 448
    resize: Literal["squash", "crop"] = "squash"
    val_fraction: float = Field(0.1, gt=0.0, lt=1.0)
    split_seed: Seed = 0
    held_out_fraction: float = Field(
        0.0, ge=0.0, le=0.5, description="share of the training photos kept for phases with photos: held_out"
    )
    balance: Literal["none", "weights", "sampling"] = Field(
        "none", description="rare classes: weigh their losses more, or draw their photos more often"
    )
    batch_size: int = Field(16, ge=1)
    eval_batch_size: int = Field(32, ge=1)
    num_workers: int = Field(2, ge=0, le=256)
    augment: AugmentConfig = AugmentConfig()
    synthetic: SyntheticConfig = SyntheticConfig()

    @field_validator("classes", mode="before")
    @classmethod
    def _classes_are_ranges(cls, value: Any) -> Any:
        if isinstance(value, int) and not isinstance(value, bool):  # YAML reads a single id as a number
            value = str(value)
        if isinstance(value, str):
            parse_ranges(value)
        return value


class ModelConfig(_Section):
    """The network: backbone, scales, attention proposal networks and how views are cut."""

    backbone: str = "vgg16"
    weights: str | None = Field(
        None, description="null, 'imagenet', or the path of a .pth or .safetensors file"
    )
    frozen_stages: int = Field(
        0, ge=0, description="first stages of the backbone, each up to a pooling, that stay as loaded"
    )
    view_sizes: tuple[Pixels, ...] = Field((448, 224, 224), min_length=1, max_length=MOST_SCALES)
    shared_backbone: bool = False
    apn: Literal["compact", "paper", "compact_unnormalised"] = Field(
        "compact", description="compact_unnormalised: compact as it was in checkpoints of format 1"
    )
    bounds: tuple[Bounds, ...] = Field(
        (), description="least and largest side of each region; empty: defaults"
    )
    zoom_from: Literal["source", "parent"] = "source"
    antialias: bool = True
    mask: bool = True
    steepness: float = Field(10.0, gt=0.0, description="the paper's k, per pixel of the image that is cut")

    @field_validator("weights")
    @classmethod
    def _home_is_meant(cls, value: str | None) -> str | None:
        return value if value is None else _expanded(value)

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

    @property
    def num_scales(self) -> int:
        """Return the number of scales."""
        return len(self.view_sizes)

    def region_bounds(self) -> tuple[Bounds, ...]:
        """Return (least, largest) side for each region, the defaults filled in."""
        if self.bounds:
            return self.bounds
        return tuple(DEFAULT_BOUNDS[min(s, 1)] for s in range(self.num_scales - 1))


KIND_OF_KEY = {
    **dict.fromkeys(("init_from", "head_lr_factor", "label_smoothing", "jitter"), "classification"),
    **dict.fromkeys(("target", "response", "enlarge", "level", "trim"), "apn_init"),
    **dict.fromkeys(("margin", "gradient", "compare", "pairs", "spread"), "ranking"),
}


class PhaseConfig(_Section):
    """One phase of training: what is trained, by which loss, for how long, and which epoch is kept.

    ``scales`` are 1-based. For ``classification`` they name backbones and classifiers; for ``apn_init`` and
    ``ranking`` scale s names the attention proposal network that cuts region s.
    """

    kind: Literal["classification", "apn_init", "ranking", "fusion"]
    scales: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (), description="empty: all that the kind can train"
    )
    epochs: int = Field(..., ge=1)
    photos: Literal["train", "held_out"] = Field(
        "train", description="held_out: those of data.held_out_fraction, which other phases do not see"
    )
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: float = Field(..., gt=0.0)
    momentum: Fraction = 0.9
    weight_decay: float = Field(1e-4, ge=0.0)
    warmup: float = Field(0.05, ge=0.0, lt=1.0, description="share of the phase with rising learning rate")
    clip_grad: float = Field(0.0, ge=0.0, description="largest gradient norm; 0: no clipping")
    keep: Literal["last", "best", "if_better"] = Field(
        "last", description="last epoch; best epoch on validation; best only if better than before the phase"
    )
    patience: int = Field(0, ge=0, description="stop after so many epochs without a better one; 0: never")
    # classification only
    head_lr_factor: float = Field(
        10.0, gt=0.0, description="classifiers learn this much faster than the trunk"
    )
    init_from: int | None = Field(None, ge=1, description="start from this scale's backbone and classifier")
    label_smoothing: float = Field(0.1, ge=0.0, lt=1.0)
    jitter: float = Field(1.0, ge=0.0, description="strength of the random shifts of the regions; 0: none")
    # apn_init only
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
    # ranking only
    margin: float = Field(0.05, ge=0.0)
    compare: Literal["prob", "log_prob"] = Field("prob", description="of the true class; the paper: prob")
    gradient: Literal["exact", "mask", "energy", "smoothed"] = Field(
        "exact", description="how the loss reaches the region, see racnn/engine/ranking.py"
    )
    pairs: int = Field(2, ge=1, description="smoothed: pairs of regions drawn around each proposal")
    spread: Fraction = Field(
        0.1, gt=0.0, description="smoothed: distance of a pair, as a share of the region's side"
    )

    @model_validator(mode="after")
    def _scales_fit_the_kind(self) -> PhaseConfig:
        if len(set(self.scales)) < len(self.scales):
            raise ValueError(f"scales {list(self.scales)} names a scale twice")
        if self.kind == "fusion" and self.scales:
            raise ValueError("'scales' does nothing in a fusion phase, which always uses all")
        return self

    def idle_keys(self) -> dict[str, str]:
        """Return the keys that do nothing in this phase, each with what it belongs to."""
        idle = {
            key: f"{kind} phases and does nothing in a {self.kind} phase"
            for key, kind in KIND_OF_KEY.items()
            if kind != self.kind
        }
        if self.optimizer != "sgd":
            idle["momentum"] = f"sgd and does nothing with {self.optimizer}"
        if self.kind == "apn_init" and self.target != "component":
            only = f"target component and does nothing with {self.target}"
            idle |= {"level": only, "trim": only}
        if self.kind == "ranking" and self.gradient != "smoothed":
            only = f"gradient smoothed and does nothing with {self.gradient}"
            idle |= {"pairs": only, "spread": only}
        return idle

    @model_serializer(mode="wrap")
    def _without_idle_keys(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = serialize(self)
        idle = self.idle_keys()
        return {key: value for key, value in values.items() if key not in idle}


class AlternationConfig(_Section):
    """Phases repeated in turn until none of them is kept or ``rounds`` are over."""

    alternate: tuple[PhaseConfig, ...] = Field(..., min_length=1)
    rounds: int = Field(1, ge=1)


def _entry_tag(entry: Any) -> str:
    alternation = "alternate" in entry if isinstance(entry, dict) else isinstance(entry, AlternationConfig)
    return "alternation" if alternation else "phase"


ScheduleEntry = Annotated[
    Annotated[PhaseConfig, Tag("phase")] | Annotated[AlternationConfig, Tag("alternation")],
    Discriminator(_entry_tag),
]


class Config(_Section):
    """Everything a run depends on."""

    run: RunConfig = RunConfig()
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    schedule: tuple[ScheduleEntry, ...] = Field(..., min_length=1)

    @model_validator(mode="after")
    def _held_out_photos_are_there(self) -> Config:
        asked = any(phase.photos == "held_out" for phase in self.phases())
        if asked and not self.data.held_out_fraction:
            raise ValueError("schedule: a phase with photos held_out needs data.held_out_fraction above 0")
        return self

    @model_validator(mode="after")
    def _phases_fit_the_scales(self) -> Config:
        for phase in self.phases():
            limit = self.model.num_scales - (phase.kind in ("apn_init", "ranking"))
            if limit == 0:
                raise ValueError(f"schedule: a {phase.kind} phase needs at least two model.view_sizes")
            some = (
                phase.kind == "classification" and phase.scales and len(phase.scales) < self.model.num_scales
            )
            if self.model.shared_backbone and some:
                raise ValueError(
                    "schedule: with model.shared_backbone a classification phase must train all scales, or those it "
                    "leaves out would drift; leave out 'scales', or use schedule=paper"
                )
            if phase.kind == "ranking" and phase.gradient == "mask" and not self.model.mask:
                raise ValueError("schedule: a ranking phase with gradient mask needs model.mask")
            for scale in (*phase.scales, phase.init_from or 1):
                if scale > limit:
                    raise ValueError(
                        f"schedule: a {phase.kind} phase names scale {scale}, "
                        f"but model.view_sizes has {self.model.num_scales} scales"
                    )
            if phase.kind == "apn_init" and len(phase.scales) != 1 and limit > 1:
                raise ValueError(
                    "schedule: an apn_init phase teaches one region, that of a trained scale; "
                    f"name it, such as scales: [1], instead of {list(phase.scales)}"
                )
        return self

    def phases(self) -> list[PhaseConfig]:
        """Return every phase once, in the order of the schedule."""
        return list(self.phases_by_key().values())

    def phases_by_key(self) -> dict[str, PhaseConfig]:
        """Return every phase once, by its dotted key, such as ``schedule.5.alternate.0``."""
        phases: dict[str, PhaseConfig] = {}
        for number, entry in enumerate(self.schedule):
            key = f"schedule.{number}"
            if isinstance(entry, AlternationConfig):
                phases |= {f"{key}.alternate.{i}": phase for i, phase in enumerate(entry.alternate)}
            else:
                phases[key] = entry
        return phases


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
