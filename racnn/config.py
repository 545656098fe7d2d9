"""The configuration: pydantic models with every default, YAML files with overrides only, ``--set a.b=c``.

One knob has one owner and one default, here. A YAML file names only what differs. Unknown keys, wrong types and
values out of range are reported all at once, each with its dotted path and the nearest valid name.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    SerializerFunctionWrapHandler,
    Tag,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

from racnn.errors import ConfigError, did_you_mean

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Side = Annotated[float, Field(gt=0.0, le=1.0)]
Bounds = tuple[Side, Side]
DEFAULT_BOUNDS: tuple[Bounds, ...] = ((0.2, 0.95), (0.3, 0.8))


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


class RunConfig(_Section):
    """What names and paces a run."""

    out: str = "runs/default"
    seed: int = Field(0, ge=0)
    save_every: int = Field(
        0, ge=0, description="steps between checkpoints; 0: at the end of each epoch only"
    )
    log_every: int = Field(10, ge=1, description="steps between rows of metrics.jsonl")
    num_preview: int = Field(8, ge=0, description="validation photos drawn into TensorBoard")
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    channels_last: bool = True


class AugmentConfig(_Section):
    """Random changes of the training photos; the boxes and part points follow."""

    crop: Side = Field(0.875, description="share of the photo's side that the random crop keeps; 1: no crop")
    flip: bool = True
    color: Fraction = Field(0.2, description="strength of brightness, contrast and saturation jitter")


class SyntheticConfig(_Section):
    """Size of the built-in set of drawn birds."""

    num_train: int = Field(2000, ge=16)
    num_test: int = Field(1000, ge=8)
    seed: int = Field(0, ge=0)


class DataConfig(_Section):
    """Which photos, how they become square sources, and how they are split and batched."""

    dataset: str = "cub200"
    root: Path | None = None
    classes: str | None = Field(None, description="subset by class id, such as '1-10,14'")
    source_size: int = Field(448, ge=16)
    resize: Literal["squash", "crop"] = "squash"
    val_fraction: float = Field(0.1, gt=0.0, lt=1.0)
    split_seed: int = Field(0, ge=0)
    batch_size: int = Field(16, ge=1)
    eval_batch_size: int = Field(32, ge=1)
    num_workers: int = Field(2, ge=0)
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
    view_sizes: tuple[Annotated[int, Field(ge=16)], ...] = Field((448, 224, 224), min_length=1)
    shared_backbone: bool = False
    apn: Literal["compact", "paper"] = "compact"
    bounds: tuple[Bounds, ...] = Field(
        (), description="least and largest side of each region; empty: defaults"
    )
    zoom_from: Literal["source", "parent"] = "source"
    antialias: bool = True
    mask: bool = True
    steepness: float = Field(10.0, gt=0.0, description="the paper's k, per pixel of the image that is cut")

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
    **dict.fromkeys(("target", "response", "level"), "apn_init"),
    "margin": "ranking",
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
    response: Literal["sum", "cam"] = Field("sum", description="map to read the box from")
    level: float = Field(
        0.0, ge=0.0, lt=1.0, description="component: threshold, from the map's mean (0) to its peak (1)"
    )
    # ranking only
    margin: float = Field(0.05, ge=0.0)

    @model_validator(mode="after")
    def _keys_belong_to_the_kind(self) -> PhaseConfig:
        for key in sorted(self.model_fields_set & KIND_OF_KEY.keys()):
            if KIND_OF_KEY[key] != self.kind:
                raise ValueError(
                    f"'{key}' belongs to {KIND_OF_KEY[key]} phases and does nothing in a {self.kind} phase"
                )
        if len(set(self.scales)) < len(self.scales):
            raise ValueError(f"scales {list(self.scales)} names a scale twice")
        if self.kind == "fusion" and self.scales:
            raise ValueError("'scales' does nothing in a fusion phase, which always uses all")
        return self

    @model_serializer(mode="wrap")
    def _without_foreign_keys(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = serialize(self)
        return {key: value for key, value in values.items() if KIND_OF_KEY.get(key, self.kind) == self.kind}


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
            for scale in (*phase.scales, phase.init_from or 1):
                if scale > limit:
                    raise ValueError(
                        f"schedule: a {phase.kind} phase names scale {scale}, "
                        f"but model.view_sizes has {self.model.num_scales} scales"
                    )
        return self

    def phases(self) -> list[PhaseConfig]:
        """Return every phase once, in the order of the schedule."""
        flat: list[PhaseConfig] = []
        for entry in self.schedule:
            flat.extend(entry.alternate if isinstance(entry, AlternationConfig) else [entry])
        return flat


def recipe_schedule(num_scales: int) -> list[dict[str, Any]]:
    """Return the default schedule: each scale taught well before the next, accept-if-better, fusion last."""
    schedule: list[dict[str, Any]] = [{"kind": "classification", "scales": [1], "epochs": 30, "lr": 0.005}]
    for scale in range(2, num_scales + 1):
        # region 1 is the object, as MMAL-Net reads it; the next ones are the part that tells the class
        sharper = {"response": "cam", "level": 0.2} if scale > 2 else {}
        schedule.append(_apn_init_phase(scale - 1, epochs=6, **sharper))
        schedule.append(
            {"kind": "classification", "scales": [scale], "init_from": scale - 1, "epochs": 20, "lr": 0.003}
        )
    if num_scales > 1:
        ranking = {"kind": "ranking", "epochs": 2, "optimizer": "adamw", "lr": 1e-5, "keep": "if_better"}
        together = {"kind": "classification", "epochs": 4, "lr": 0.001, "keep": "if_better"}
        schedule.append({"alternate": [ranking, together], "rounds": 2})
        schedule.append(_fusion_phase())
    return schedule


def paper_schedule(num_scales: int) -> list[dict[str, Any]]:
    """Return the paper's schedule: all scales from the same weights, peak start, plain alternation."""
    together = {"kind": "classification", "epochs": 30, "lr": 0.01, "jitter": 0.0, "label_smoothing": 0.0}
    schedule: list[dict[str, Any]] = []
    for region in range(1, num_scales):
        schedule.append(_apn_init_phase(region, epochs=6, target="peak"))
    if num_scales == 1:
        return [together]
    ranking = {"kind": "ranking", "epochs": 5, "lr": 0.001}
    schedule.append({"alternate": [together, ranking], "rounds": 3})
    schedule.append(_fusion_phase())
    return schedule


def _apn_init_phase(region: int, **changes: Any) -> dict[str, Any]:
    phase = {"kind": "apn_init", "scales": [region], "optimizer": "adamw", "lr": 1e-3, "keep": "best"}
    return phase | changes


def _fusion_phase() -> dict[str, Any]:
    return {"kind": "fusion", "epochs": 4, "lr": 0.01, "keep": "if_better"}


SCHEDULES = {"recipe": recipe_schedule, "paper": paper_schedule}


def load_config(path: Path | None, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file of overrides, apply ``key=value`` strings on top, and validate the whole.

    Args:
        path: The YAML file, or None for the defaults alone.
        overrides: ``a.b=c`` strings; the value is parsed as YAML; list items are named by position.

    Raises:
        ConfigError: Every mistake found, one line each, with its dotted path.
    """
    values = read_yaml(path) if path is not None else {}
    pairs = [_split_override(text) for text in overrides]
    for keys, value, text in pairs:
        if keys[0] != "schedule" or len(keys) == 1:
            _assign(values, keys, value, text)
    _expand_schedule(values)
    for keys, value, text in pairs:
        if keys[0] == "schedule" and len(keys) > 1:
            _assign(values, keys, value, text)
    return parse_config(values, origin=str(path) if path else "the configuration")


def parse_config(values: dict[str, Any], *, origin: str) -> Config:
    """Validate a plain dictionary, such as the one stored in a checkpoint.

    Raises:
        ConfigError: Every mistake found, one line each, with its dotted path.
    """
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        items = error.errors()
        lines = [_explain(item) for item in items if not _is_aftermath(item, items)]
        raise ConfigError(f"{origin}:\n" + "\n".join(f"  {line}" for line in dict.fromkeys(lines))) from None


def dump_config(config: Config) -> dict[str, Any]:
    """Return the resolved configuration as plain YAML and JSON types."""
    return config.model_dump(mode="json")


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping, refusing duplicate keys.

    Raises:
        ConfigError: The file is missing, is not YAML, or is not a mapping.
    """
    if not path.is_file():
        siblings = [p.name for p in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
        raise ConfigError(f"{path}: no such configuration file{did_you_mean(path.name, siblings)}")
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeyLoader)  # a SafeLoader
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected 'key: value' lines, found {type(values).__name__}")
    return values


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
        ids.update(range(low, high + 1))
    return sorted(ids)


class _UniqueKeyLoader(yaml.SafeLoader):
    """A safe YAML loader that refuses a key given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Return the mapping of a node after checking that no key repeats."""
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str | int | float | bool | None):
                raise yaml.constructor.ConstructorError(
                    None, None, "a key must be plain text", key_node.start_mark
                )
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key '{key}' stands twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def _split_override(text: str) -> tuple[list[str], Any, str]:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--set {text}: expected key=value, for example --set data.batch_size=8")
    try:
        return key.strip().split("."), yaml.safe_load(value), text
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {text}: the value is not valid YAML: {error}") from None


def _assign(values: dict[str, Any], keys: list[str], value: Any, text: str) -> None:
    node: Any = values
    for depth, key in enumerate(keys):
        last = depth == len(keys) - 1
        if isinstance(node, list):
            if not key.isdigit() or int(key) >= len(node):
                where = ".".join(keys[:depth])
                raise ConfigError(
                    f"--set {text}: '{key}' is not a position in {where}, which has {len(node)} items"
                )
            index: Any = int(key)
        elif isinstance(node, dict):
            index = key
            if not last and node.get(key) is None:
                if keys[depth + 1].isdigit():
                    where = ".".join(keys[: depth + 1])
                    raise ConfigError(
                        f"--set {text}: {where} is not in the file; give the whole list: --set {where}=[...]"
                    )
                node[key] = {}
        else:
            raise ConfigError(f"--set {text}: '{'.'.join(keys[:depth])}' is a single value and has no keys")
        if last:
            node[index] = value
        else:
            node = node[index]


def _expand_schedule(values: dict[str, Any]) -> None:
    """Replace a schedule's name by its phases."""
    schedule = values.get("schedule", "recipe")
    if not isinstance(schedule, str):
        return
    if schedule not in SCHEDULES:
        raise ConfigError(
            f"schedule: no schedule is called '{schedule}'{did_you_mean(schedule, SCHEDULES)}; "
            f"expected {', '.join(SCHEDULES)} or a list of phases"
        )
    model = values.get("model")
    sizes = model.get("view_sizes") if isinstance(model, dict) else None
    num_scales = len(sizes) if isinstance(sizes, list) and sizes else len(ModelConfig().view_sizes)
    values["schedule"] = SCHEDULES[schedule](num_scales)


def _explain(item: Any) -> str:
    """Turn one pydantic error into a line with the dotted path and the nearest valid name."""
    parts = [str(part) for part in _without_tag(item["loc"])]
    path = ".".join(parts) or "configuration"
    if item["type"] == "extra_forbidden":
        return f"{path}: unknown key{did_you_mean(parts[-1], _known_keys(item['loc']))}"
    message = item["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    shown = (
        ""
        if item["type"] == "missing" or isinstance(item["input"], dict | list)
        else f", got {item['input']!r}"
    )
    return f"{path}: {message}{shown}"


def _is_aftermath(item: Any, items: Sequence[Any]) -> bool:
    """Return whether a list seems too short only because an item of it has a mistake of its own."""
    loc = item["loc"]
    return item["type"] == "too_short" and any(o is not item and o["loc"][: len(loc)] == loc for o in items)


def _without_tag(loc: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return a location in the words of the file: without the tag that tells phases from alternations."""
    return loc[:2] + loc[3:] if loc[0:1] == ("schedule",) and len(loc) > 2 else loc


def _known_keys(loc: tuple[Any, ...]) -> list[str]:
    """Return the keys that are valid beside the last one of a pydantic location."""
    section: type[BaseModel] = Config
    for part in loc[:-1]:
        if part in ("phase", "alternation"):
            section = PhaseConfig if part == "phase" else AlternationConfig
        elif isinstance(part, str) and part in section.model_fields:
            annotation = section.model_fields[part].annotation
            if part == "alternate":
                section = PhaseConfig
            elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
                section = annotation
    return list(section.model_fields)
