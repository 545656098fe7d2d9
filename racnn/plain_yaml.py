"""YAML as people write it, no key twice and numbers in decimal alone, and ``a.b=c`` on top of it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml

from racnn.errors import ConfigError, did_you_mean

# What PyYAML raises: its own errors, and whatever a date such as 2001-99-99, a tag or too deep a nesting makes Python say.
NOT_YAML = (
    yaml.YAMLError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    OverflowError,
    RecursionError,
)
_INT, _FLOAT = "tag:yaml.org,2002:int", "tag:yaml.org,2002:float"


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping, refusing duplicate keys.

    Raises:
        ConfigError: The file is missing, is not YAML, or is not a mapping.
    """
    if not path.is_file():
        siblings = [p.name for p in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
        raise ConfigError(f"{path}: no such configuration file{did_you_mean(path.name, siblings)}")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from None
    values = parse_yaml(text, f"{path}:")
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected 'key: value' lines, found {type(values).__name__}")
    return values


def parse_yaml(text: str, origin: str) -> Any:
    """Return what a text says; ``origin`` begins the message where it is not YAML.

    Raises:
        ConfigError: It is not.
    """
    try:
        return yaml.load(text, Loader=_PlainLoader)  # a SafeLoader
    except NOT_YAML as error:
        raise ConfigError(f"{origin} not valid YAML: {error}") from None


def split_override(
    text: str, types_of: Callable[[Sequence[str]], tuple[Any, ...]]
) -> tuple[list[str], Any, str]:
    """Return the keys, the value and the text of a ``a.b=c`` string.

    Args:
        text: The string as it was given.
        types_of: Returns the types that the value of a key may have; () where that is not known.

    Raises:
        ConfigError: It is no such string, or its value is not YAML.
    """
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--set {text}: expected key=value, for example --set data.batch_size=8")
    keys = key.strip().split(".")
    types = types_of(keys)
    if types and all(each in (str, Path, type(None)) or _are_words(each) for each in types):
        if get_origin(types[0]) is Literal:
            value = value.strip()
        if not value:
            none = ", or null for none" if type(None) in types else ""
            raise ConfigError(f"--set {text}: expected a value after the ={none}")
        return keys, None if value == "null" and type(None) in types else value, text
    return keys, parse_yaml(value, f"--set {text}: the value is"), text


def _are_words(kind: Any) -> bool:
    """Return whether a type is a choice of words."""
    return get_origin(kind) is Literal and all(isinstance(word, str) for word in get_args(kind))


def assign(values: dict[str, Any], keys: Sequence[str], value: Any, text: str) -> None:
    """Put a value where its keys say, making the mappings on the way; items of a list are named by position.

    Raises:
        ConfigError: A key is no position of a list, or leads through a single value; ``text`` is quoted.
    """
    node: Any = values
    for depth, key in enumerate(keys):
        where, last = ".".join(keys[:depth]), depth == len(keys) - 1
        index: Any = key
        if isinstance(node, list):
            if not re.fullmatch("[0-9]{1,9}", key) or int(key) >= len(node):
                raise ConfigError(
                    f"--set {text}: '{key}' is not a position in {where}, which has {len(node)} items"
                )
            index = int(key)
        elif not isinstance(node, dict):
            raise ConfigError(f"--set {text}: '{where}' is a single value and has no keys")
        elif not last and node.get(key) is None:
            if keys[depth + 1].isdigit():
                name = ".".join(keys[: depth + 1])
                raise ConfigError(
                    f"--set {text}: {name} is not in the file; give the whole list: --set {name}=[...]"
                )
            node[key] = {}
        if last:
            node[index] = value
        else:
            node = node[index]


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
