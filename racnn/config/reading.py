"""Read a configuration: a YAML file with overrides only, ``--set a.b=c`` on top, all mistakes told at once.

Unknown keys, wrong types and values out of range are reported together, each with its dotted path and the nearest
valid name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from racnn.config.idle import idle_requests
from racnn.config.schema import AlternationConfig, Config
from racnn.errors import ConfigError, did_you_mean
from racnn.models.phase import Phase
from racnn.models.racnn.phases import PHASES, kind_of
from racnn.models.racnn.schedules import SCHEDULES
from racnn.sections import MOST_SCALES, ModelConfig

# What PyYAML raises: its own errors, and whatever a date such as 2001-99-99, a tag or too deep a nesting makes Python say.
NOT_YAML = (yaml.YAMLError, ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError)
MOST_TOLD = 50  # mistakes in one message
MOST_SHOWN = 80  # characters of a wrong value


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
    pairs = [_split_override(text) for text in overrides]
    for keys, value, text in pairs:
        if keys[0] != "schedule" or len(keys) == 1:
            _assign(values, keys, value, text)
    _expand_schedule(values)
    for keys, value, text in pairs:
        if keys[0] == "schedule" and len(keys) > 1:
            _assign(values, keys, value, text)
    given = {".".join(keys): text for keys, _, text in pairs}
    return parse_config(values, origin=str(path) if path else "the configuration", given=given)


def parse_config(
    values: dict[str, Any], *, origin: str, stored: bool = False, given: Mapping[str, str] | None = None
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
    misread = [] if stored else list(_misread(values, Config))
    if misread:
        raise _mistakes(origin, misread, given or {})
    if stored:
        values = _without_keys_of_other_kinds(values)
    try:
        config = Config.model_validate(values)
    except ValidationError as error:
        items = error.errors()
        lines = [_explain(item) for item in items if not _is_aftermath(item, items)]
        raise _mistakes(origin, lines, given or {}) from None
    if not stored and (lines := idle_requests(config)):
        raise _mistakes(origin, lines, given or {})
    return config


def _without_keys_of_other_kinds(node: Any) -> Any:
    """Return a stored configuration without what an earlier version let stand in a phase of another kind."""
    if isinstance(node, list | tuple):
        return [_without_keys_of_other_kinds(item) for item in node]
    if not isinstance(node, dict):
        return node
    if isinstance(node.get("kind"), str) and node["kind"] in PHASES:
        others = {key for phase in PHASES.values() for key in phase.model_fields}
        others -= PHASES[node["kind"]].model_fields.keys()
        return {key: value for key, value in node.items() if key not in others}
    parts = ("schedule", "alternate")
    return {
        key: _without_keys_of_other_kinds(value) if key in parts else value for key, value in node.items()
    }


def _misread(values: Any, section: type[BaseModel], where: tuple[str, ...] = ()) -> Iterator[str]:
    """Yield what pydantic would take for something else: true for 1, and an empty text for the folder one is in."""
    for key, value in values.items() if isinstance(values, dict) else ():
        keys = (*where, str(key))
        types = _types_of(keys)
        inner = types[0] if len(types) == 1 else None
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from _misread(value, inner, keys)
        elif key in ("schedule", "alternate") and isinstance(value, list):
            for position, entry in enumerate(value if len(where) <= 2 else ()):
                yield from _misread(entry, PHASES[kind_of(entry)], (*keys, str(position)))
        elif isinstance(value, bool) and {int, float} & set(_plain(types)) and bool not in types:
            yield f"{'.'.join(keys)}: expected a number, got {str(value).lower()}"
        elif isinstance(value, str) and not value and {str, Path} & set(types):
            yield f"{'.'.join(keys)}: expected a value{', or null for none' if type(None) in types else ''}"


def _plain(types: Iterable[Any]) -> list[Any]:
    """Return types without the limits that they are annotated with."""
    return [get_args(each)[0] if get_origin(each) is Annotated else each for each in types]


def _mistakes(origin: str, lines: Sequence[str], given: Mapping[str, str]) -> ConfigError:
    told = [f"  {_with_source(line, given)}" for line in dict.fromkeys(lines)]
    if len(told) > MOST_TOLD:
        told[MOST_TOLD:] = [f"  and {len(told) - MOST_TOLD} more"]
    return ConfigError(f"{origin}:\n" + "\n".join(told))


def _with_source(line: str, given: Mapping[str, str]) -> str:
    """Return a line with the ``--set`` that its key was given by, if it was."""
    path = line.partition(":")[0]
    source = next((text for key, text in given.items() if path == key or path.startswith(f"{key}.")), None)
    return line if source is None else f"--set {_shortened_text(source)}: {line}"


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
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_PlainLoader)  # a SafeLoader
    except NOT_YAML as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected 'key: value' lines, found {type(values).__name__}")
    return values


_INT, _FLOAT = "tag:yaml.org,2002:int", "tag:yaml.org,2002:float"


class _PlainLoader(yaml.SafeLoader):
    """A safe YAML loader that refuses a key given twice and reads numbers in decimal alone.

    To YAML 1.1 010 is 8 and 1:30 is 90; here they are text, which a key of numbers refuses or reads as people do.
    """

    yaml_implicit_resolvers = {  # noqa: RUF012  # as PyYAML has it
        first: [(tag, pattern) for tag, pattern in resolvers if tag not in (_INT, _FLOAT)]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

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


_PlainLoader.add_implicit_resolver(
    _FLOAT,
    re.compile(
        r"(?:[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))\Z"
    ),
    list("-+.0123456789"),
)
_PlainLoader.add_implicit_resolver(_INT, re.compile(r"[-+]?(?:0|[1-9][0-9]*)\Z"), list("-+0123456789"))


def _split_override(text: str) -> tuple[list[str], Any, str]:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--set {text}: expected key=value, for example --set data.batch_size=8")
    keys = key.strip().split(".")
    types = _types_of(keys)
    if types and all(each in (str, Path, type(None)) or get_origin(each) is Literal for each in types):
        if get_origin(types[0]) is Literal:
            value = value.strip()
        if not value:
            none = ", or null for none" if type(None) in types else ""
            raise ConfigError(f"--set {text}: expected a value after the ={none}")
        return keys, None if value == "null" and type(None) in types else value, text
    try:
        return keys, yaml.load(value, Loader=_PlainLoader), text
    except NOT_YAML as error:
        raise ConfigError(f"--set {text}: the value is not valid YAML: {error}") from None


def _types_of(keys: Sequence[str]) -> tuple[Any, ...]:
    """Return the types that the value of a key may have, the members of a union apart; () for no single key."""
    section: type[BaseModel] | None = Config
    annotation: Any = None
    if keys[0] == "schedule" and len(keys) > 1:
        # a key that several kinds of phase have is of one type in all
        fields = [phase.model_fields[keys[-1]] for phase in PHASES.values() if keys[-1] in phase.model_fields]
        return _members(fields[0].annotation) if fields and keys[-2].isdigit() else ()
    for key in keys:
        if section is None or key not in section.model_fields:
            return ()
        annotation = section.model_fields[key].annotation
        section = annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None
    return _members(annotation)


def _members(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)


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
    if (
        not isinstance(sizes, list)
        or not 0 < len(sizes) <= MOST_SCALES
        or not all(isinstance(size, int | float) for size in sizes)
    ):
        sizes = ModelConfig().view_sizes  # a mistake, if there is one, is told of by itself
    values["schedule"] = SCHEDULES[schedule](sizes)


def _explain(item: Any) -> str:
    """Turn one pydantic error into a line with the dotted path and the nearest valid name."""
    parts = [str(part) for part in _without_tags(item["loc"])]
    path = ".".join(parts) or "configuration"
    if item["type"] == "extra_forbidden":
        owners = [kind for kind, phase in PHASES.items() if parts[-1] in phase.model_fields]
        here = next((part for part in reversed(item["loc"]) if part in PHASES), None)
        if parts[0] == "schedule" and owners and here:
            return (
                f"{'.'.join(parts[:-1])}: '{parts[-1]}' belongs to {' and '.join(owners)} phases and does nothing in a "
                f"{here} phase"
            )
        hint = did_you_mean(parts[-1], _known_keys(item["loc"]))
        if len(parts) == 1:
            hint = did_you_mean(parts[0], _places_of(parts[0])) or hint
        if "alternation" in item["loc"] and "phase" not in item["loc"] and parts[-1] in Phase.model_fields:
            hint = f"; this entry alternates: {'.'.join(parts[:-1])}.alternate.0.{parts[-1]} and so on, and rounds"
        return f"{path}: unknown key{hint}"
    message = item["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    if item["type"] == "tuple_type":
        message = "expected a list, in square brackets"
    if item["type"] == "literal_error" and parts[0] == "schedule" and parts[-1] == "kind":
        message = f"input should be {', '.join(repr(kind) for kind in PHASES)}"
    shown = (
        ""
        if item["type"] == "missing" or isinstance(item["input"], dict | list)
        else f", got {_shortened(item['input'])}"
    )
    return f"{path}: {message}{shown}"


def _shortened(value: Any) -> str:
    if isinstance(value, int) and abs(value) >= 10**MOST_SHOWN:
        return "a huge number"  # Python refuses to write some of them out
    return _shortened_text(repr(value))


def _shortened_text(text: str) -> str:
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}..."


def _is_aftermath(item: Any, items: Sequence[Any]) -> bool:
    """Return whether a list seems too short only because an item of it has a mistake of its own."""
    loc = item["loc"]
    return item["type"] == "too_short" and any(o is not item and o["loc"][: len(loc)] == loc for o in items)


def _without_tags(loc: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return a location in the words of the file: without the tags that tell entries of a schedule from one another."""
    if loc[:1] != ("schedule",):
        return loc
    tags = ("phase", "alternation", *PHASES)
    kept: list[Any] = []
    tagged = False  # a number is followed by the tags of what stands there
    for part in loc:
        tagged = isinstance(part, int) or (tagged and part in tags)
        if isinstance(part, int) or not tagged:
            kept.append(part)
    return tuple(kept)


def _places_of(key: str) -> list[str]:
    """Return where a key that stands in no section would belong."""
    return [
        f"{name}.{key}"
        for name, section in Config.model_fields.items()
        if isinstance(section.annotation, type)
        and issubclass(section.annotation, BaseModel)
        and key in section.annotation.model_fields
    ]


def _known_keys(loc: tuple[Any, ...]) -> list[str]:
    """Return the keys that are valid beside the last one of a pydantic location."""
    section: type[BaseModel] = Config
    for part in loc[:-1]:
        if part in PHASES:
            section = PHASES[part]
        elif part == "alternation":
            section = AlternationConfig
        elif isinstance(part, str) and part in section.model_fields:
            annotation = section.model_fields[part].annotation
            if isinstance(annotation, type) and issubclass(annotation, BaseModel):
                section = annotation
    return list(section.model_fields)
