"""The configuration of a run: its sections, the schedule of phases, and how it is read.

A YAML file holds overrides only, ``--set a.b=c`` goes on top. Unknown keys, wrong types and values out of range are reported
together, each with its dotted path and the nearest valid name; then what does not fit together, and keys that would do nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, SerializeAsAny, ValidationError, model_validator

from racnn.errors import ConfigError, did_you_mean
from racnn.mistakes import explain, misread, mistakes, shown
from racnn.models import FAMILIES, Family
from racnn.models.phase import AlternationConfig, GradientPhase, Phase
from racnn.plain_yaml import assign, read_yaml, split_override
from racnn.sections import DataConfig, ModelConfig, ModelSection, RunConfig, Section, members

# Keys of ``data`` that do nothing where all is fitted in one go, and why.
IDLE_WITHOUT_STEPS = {
    "balance": "heads that are fitted in one go let all classes count the same",
    "batch_size": "data.eval_batch_size is how many photos are read at a time",
    "augment": "photos are read as they are",
}
SECTIONS: dict[str, type[Section]] = {"run": RunConfig, "data": DataConfig}


class Config(Section):
    """Everything a run depends on. ``model`` and the phases are of the classes of a family, see :mod:`racnn.models`."""

    run: RunConfig = RunConfig()
    data: DataConfig = DataConfig()
    model: SerializeAsAny[ModelSection] = ModelConfig()
    schedule: tuple[SerializeAsAny[Phase] | AlternationConfig, ...] = Field(..., min_length=1)

    @model_validator(mode="after")
    def _held_out_photos_are_there(self) -> Config:
        asked = any(phase.photos == "held_out" for phase in self.phases())
        if asked and not self.data.held_out_fraction:
            raise ValueError("schedule: a phase with photos held_out needs data.held_out_fraction above 0")
        return self

    @model_validator(mode="after")
    def _levels_are_known(self) -> Config:
        if getattr(self.model, "level_heads", ()) and self.data.levels is None:
            raise ValueError(
                "model.level_heads: needs data.levels, which says what groups the classes are in"
            )
        return self

    @model_validator(mode="after")
    def _phases_fit_the_network(self) -> Config:
        for phase in self.phases():
            for problem in phase.misfits(self.model):
                raise ValueError(f"schedule: {problem}")
        return self

    @model_validator(mode="after")
    def _answers_out_of_fold_are_out_of_fold(self) -> Config:
        learnt: set[str] = set()
        entries = [
            entry.alternate * min(entry.rounds, 2) if isinstance(entry, AlternationConfig) else (entry,)
            for entry in self.schedule
        ]
        for phase in (phase for phases in entries for phase in phases):
            if phase.answers_out_of_fold and phase.photos in learnt:
                raise ValueError(
                    f"schedule: a {phase.kind} phase judges heads by photos that they have not seen, and the trunk was trained on "
                    "these before; put it first, or give it photos: held_out (and set data.held_out_fraction)"
                )
            if (
                isinstance(phase, GradientPhase)
                and phase.resolved(self.model.num_scales).last_trained_scale()
            ):
                learnt.add(phase.photos)
        return self

    def phases(self) -> list[Phase]:
        """Return every phase once, in the order of the schedule."""
        return list(self.phases_by_key().values())

    def steps_by_key(self) -> dict[str, GradientPhase]:
        """Return by its dotted key every phase that takes gradient steps."""
        return {key: phase for key, phase in self.phases_by_key().items() if isinstance(phase, GradientPhase)}

    def phases_by_key(self) -> dict[str, Phase]:
        """Return every phase once, by its dotted key, such as ``schedule.5.alternate.0``."""
        phases: dict[str, Phase] = {}
        for number, entry in enumerate(self.schedule):
            key = f"schedule.{number}"
            if isinstance(entry, AlternationConfig):
                phases |= {f"{key}.alternate.{i}": phase for i, phase in enumerate(entry.alternate)}
            else:
                phases[key] = entry
        return phases


def load_config(path: Path | None, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file of overrides, apply ``key=value`` strings on top, and validate the whole.

    Args:
        path: The YAML file, or None for the defaults alone.
        overrides: ``a.b=c`` strings; list items are named by position. The value of a key that takes text or a path is taken
            as it stands (``null`` is none where the key may be none), any other is parsed as YAML.

    Raises:
        ConfigError: Every mistake found, one line each, with its dotted path.
    """
    values = read_yaml(path) if path is not None else {}
    begun = _family_name(values)
    pairs = [split_override(text, _types_of) for text in overrides]
    for keys, value, text in pairs:
        if keys[0] != "schedule" or len(keys) == 1:
            assign(values, keys, value, text)
    _expand_schedule(values)
    for keys, value, text in pairs:
        if keys[0] == "schedule" and len(keys) > 1:
            assign(values, keys, value, text)
    given = {".".join(keys): text for keys, _, text in pairs}
    try:
        return parse_config(values, origin=str(path) if path else "the configuration", given=given)
    except ConfigError as error:
        wanted = FAMILIES.get(str(_family_name(values)))
        is_asked = "model.family" in given and _family_name(values) != begun
        if path is None or wanted is None or not is_asked or "model." not in str(error):
            raise
        such = f", such as --config {wanted.example}" if wanted.example else ""
        raise ConfigError(
            f"--set {given['model.family']}: {path.name} is of family {begun}, whose keys are its own; begin with a configuration of family "
            f"{_family_name(values)}{such}"
        ) from None


def parse_config(
    values: Mapping[str, Any], *, origin: str, stored: bool = False, given: Mapping[str, str] | None = None
) -> Config:
    """Validate a plain dictionary.

    Args:
        values: By section.
        origin: Where the values come from, for the message.
        stored: It comes from a checkpoint, where keys that do nothing are no mistake.
        given: By dotted path what was given by ``--set``, which a mistake there names.

    Raises:
        ConfigError: Every mistake found, one line each, with its dotted path.
    """
    family, lines = _family_of(values)
    sections = {**SECTIONS, "model": family.config}
    parts: dict[str, Any] = {}
    for key, section in sections.items():
        parts[key], found = _read(section, values.get(key, {}), key, stored)
        lines += found
    parts["schedule"], found = _read_entries(values.get("schedule"), family, "schedule", stored)
    lines += found
    places = {
        key: [f"{name}.{key}" for name, s in sections.items() if key in s.model_fields] for key in values
    }
    for key in [key for key in values if key not in parts]:
        hint = did_you_mean(str(key), places[key]) or did_you_mean(str(key), parts)
        lines.append(f"{key}: unknown key{hint}")
    if not lines:
        try:
            config = Config(**parts)
            lines = [] if stored else _idle_requests(config)
        except ValidationError as error:
            lines = [explain(item, Config, "") for item in error.errors()]
    if lines:
        raise mistakes(origin, lines, given or {})
    return config


def dump_config(config: Config) -> dict[str, Any]:
    """Return the resolved configuration as plain YAML and JSON types."""
    return config.model_dump(mode="json")


def _family_of(values: Mapping[str, Any]) -> tuple[Family, list[str]]:
    """Return the model family that ``model.family`` names, and what is wrong with the name."""
    name = _family_name(values)
    if isinstance(name, str) and name in FAMILIES:
        return FAMILIES[name], []
    expected = ", ".join(FAMILIES)
    return FAMILIES["racnn"], [f"model.family: expected one of {expected}, got {shown(name)}"]


def _family_name(values: Mapping[str, Any]) -> Any:
    """Return what ``model.family`` is, whether or not there is one of that name."""
    model = values.get("model")
    return model.get("family", "racnn") if isinstance(model, dict) else "racnn"


def _read(section: type[Section], value: Any, path: str, stored: bool) -> tuple[Any, list[str]]:
    """Return a section of the configuration, and what is wrong with it."""
    lines = [] if stored else list(misread(value, section, path))
    try:
        return section.model_validate(value), lines
    except ValidationError as error:
        return None, lines or [explain(item, section, path) for item in error.errors()]


def _read_entries(entries: Any, family: Family, path: str, stored: bool) -> tuple[list[Any], list[str]]:
    """Return the entries of a schedule or an alternation, and what is wrong with them."""
    if not isinstance(entries, list | tuple) or not entries:
        return [], [f"{path}: expected a list of phases, got {shown(entries)}"]
    found, lines = [], []
    for number, entry in enumerate(entries):
        where = f"{path}.{number}"
        if isinstance(entry, dict) and "alternate" in entry and path == "schedule":
            inner, faults = _read_entries(entry["alternate"], family, f"{where}.alternate", stored)
            # one phase that is in order stands for those that are not, whose mistakes are told already
            stand_in = inner if not faults else [Phase(kind="")]
            rest = {**entry, "alternate": stand_in}
            for key in rest.keys() & {k for phase in family.phases.values() for k in phase.model_fields}:
                hint = f"this entry alternates: {where}.alternate.0.{key} and so on, and rounds"
                faults.append(f"{where}.{key}: unknown key; {hint}")
                del rest[key]
            alternation, more = _read(AlternationConfig, rest, where, stored)
            found.append(alternation)
            lines += faults + more
        else:
            phase, faults = _read_phase(entry, family, where, stored)
            found.append(phase)
            lines += faults
    return found, lines


def _read_phase(entry: Any, family: Family, path: str, stored: bool) -> tuple[Any, list[str]]:
    if not isinstance(entry, dict):
        return None, [f"{path}: expected the keys of a phase, got {shown(entry)}"]
    kind = entry.get("kind")
    if not isinstance(kind, str) or kind not in family.phases:
        kinds = ", ".join(repr(each) for each in family.phases)
        wrong = f"input should be {kinds}, got {shown(kind)}" if "kind" in entry else "field required"
        lines, kind = [f"{path}.kind: {wrong}"], next(iter(family.phases))  # for what else is wrong
        entry = {key: value for key, value in entry.items() if key in family.phases[kind].model_fields} | {
            "kind": kind
        }
    else:
        lines = []
    phase = family.phases[kind]
    for key in [key for key in entry if key not in phase.model_fields]:
        if owners := [name for name, other in family.phases.items() if key in other.model_fields]:
            entry = {name: value for name, value in entry.items() if name != key}
            if not stored:  # an earlier version let it stand
                owned = f"'{key}' belongs to {' and '.join(owners)} phases"
                lines.append(f"{path}: {owned} and does nothing in a {kind} phase")
    read, faults = _read(phase, entry, path, stored)
    return read, lines + faults


def _idle_requests(config: Config) -> list[str]:
    """Return a line for each key that was set, and each phase, that would do nothing."""
    lines = []
    num_scales = config.model.num_scales
    trained_scales: set[int] = set()
    for path, phase in config.phases_by_key().items():
        run = phase.resolved(num_scales)
        if run.last_trained_scale():
            trained_scales |= set(run.scales)
        missing = sorted(set(range(1, num_scales + 1)) - trained_scales)
        if phase.trains_fusion and missing:
            named = ", ".join(map(str, missing))
            lines.append(
                f"{path}: fusion joins all scales, and no classification phase before it trains {named}"
            )
        for key, why in phase.idle_keys(num_scales).items():
            if getattr(phase, key) != type(phase).model_fields[key].default:
                lines.append(f"{path}: '{key}' belongs to {why}")
    if config.data.held_out_fraction and not any(phase.photos == "held_out" for phase in config.phases()):
        lines.append("data.held_out_fraction: no phase of the schedule has photos held_out to use them")
    steps = config.steps_by_key()
    once = bool(steps) and not any(phase.augments for phase in steps.values())
    if once and config.data.augment != DataConfig().augment:
        lines.append(
            f"data.augment: belongs to phases whose steps open photos; {next(iter(steps))} reads each view once beforehand"
        )
    if once and config.run.compile:
        lines.append(
            "run.compile: belongs to phases whose steps run a whole trunk; here they run its last stages"
        )
    for key in ("compile", "activation_checkpointing"):
        if getattr(config.run, key) and not config.model.has_trunk:
            lines.append(f"run.{key}: belongs to backbones, and {config.model.backbone} is a single layer")
    if not steps:
        plain = DataConfig()
        for key, what in IDLE_WITHOUT_STEPS.items():
            if getattr(config.data, key) != getattr(plain, key):
                lines.append(f"data.{key}: belongs to phases that take steps; {what}")
        if getattr(config.model, "gates", "none") != "none":
            lines.append("model.gates: belongs to phases that take steps, which gates learn by")
        if getattr(config.model, "pooling", "mean") != "mean":
            lines.append("model.pooling: attention belongs to phases that take steps, which it learns by")
        if getattr(config.model, "frozen_stages", 0):
            lines.append(
                "model.frozen_stages: belongs to phases that take steps; here all of the trunk stays as loaded"
            )
    return lines


def _types_of(keys: Sequence[str]) -> tuple[Any, ...]:
    """Return the types that the value of a key may have, in whichever family; () for no single key."""
    families = FAMILIES.values()
    models: list[type[Section]] = [family.config for family in families]
    phases = [phase for family in families for phase in family.phases.values()]
    if keys[0] == "schedule":
        sections: Sequence[type[Section]] = phases if len(keys) > 1 and keys[-2].isdigit() else []
    else:
        sections = models if keys[0] == "model" else [SECTIONS[key] for key in keys[:1] if key in SECTIONS]
        for key in keys[1:-1]:
            inner = [
                section.model_fields[key].annotation for section in sections if key in section.model_fields
            ]
            sections = [each for each in inner if isinstance(each, type) and issubclass(each, Section)]
    fields = [s.model_fields[keys[-1]] for s in sections if keys[-1] in s.model_fields]
    return tuple(each for field in fields for each in members(field.annotation)) if len(keys) > 1 else ()


def _expand_schedule(values: dict[str, Any]) -> None:
    """Replace a schedule's name by its phases."""
    schedule = values.get("schedule", "recipe")
    if not isinstance(schedule, str):
        return
    family, _ = _family_of(values)
    if schedule not in family.schedules:
        raise ConfigError(
            f"schedule: no schedule is called '{schedule}'{did_you_mean(schedule, family.schedules)}; "
            f"expected {', '.join(family.schedules)} or a list of phases"
        )
    try:
        sizes = family.config.model_validate(values.get("model", {})).view_sizes
    except ValidationError:  # is told of by itself
        sizes = family.config.model_fields["view_sizes"].default
    values["schedule"] = family.schedules[schedule](sizes)
