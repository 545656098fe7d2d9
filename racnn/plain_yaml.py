"""YAML as people write it: no key twice, numbers in decimal alone."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from racnn.errors import ConfigError, did_you_mean

# What PyYAML raises: its own errors, and whatever a date such as 2001-99-99, a tag or too deep a nesting makes Python say.
NOT_YAML = (yaml.YAMLError, ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError)
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
