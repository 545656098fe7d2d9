"""What is wrong with a section of a configuration, in words: the dotted path, what was expected, the nearest valid name."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

from racnn.errors import ConfigError, did_you_mean
from racnn.sections import Section, members

MOST_TOLD = 50  # mistakes in one message
MOST_SHOWN = 80  # characters of a wrong value


def explain(item: Any, section: type[Section], path: str) -> str:
    """Return one of pydantic's errors as a line.

    Args:
        item: From :meth:`pydantic.ValidationError.errors`.
        section: Class that the values were validated by.
        path: Where it stands in the configuration.
    """
    message = item["msg"].removeprefix("Value error, ")
    where = ".".join(filter(None, [path, *(str(part) for part in item["loc"])]))
    own, _, rest = message.partition(": ")
    if item["type"] == "value_error" and path and not item["loc"] and own in section.model_fields:
        return f"{path}.{own}: {rest}"  # what does not fit together begins with the key that should change
    if item["type"] == "extra_forbidden":
        return f"{where}: unknown key{_hint(item['loc'], section)}"
    if item["type"] == "value_error" and not where:
        return message
    message = message[0].lower() + message[1:]
    if item["type"] == "tuple_type":
        message = "expected a list, in square brackets"
    if item["type"] == "missing" or isinstance(item["input"], dict | list | Section):
        return f"{where}: {message}"
    return f"{where}: {message}, got {shown(item['input'])}"


def misread(values: Any, section: type[Section], path: str) -> Iterator[str]:
    """Yield what pydantic would take for something else: true for 1, and an empty text for the folder one is in."""
    for key, value in values.items() if isinstance(values, dict) else ():
        if key not in section.model_fields:
            continue
        where, types = f"{path}.{key}", members(section.model_fields[key].annotation)
        inner = types[0] if len(types) == 1 else None
        if isinstance(inner, type) and issubclass(inner, Section):
            yield from misread(value, inner, where)
        elif isinstance(value, bool) and {int, float} & set(_plain(types)) and bool not in types:
            yield f"{where}: expected a number, got {str(value).lower()}"
        elif isinstance(value, str) and not value and {str, Path} & set(types):
            yield f"{where}: expected a value{', or null for none' if type(None) in types else ''}"


def mistakes(origin: str, lines: Sequence[str], given: Mapping[str, str]) -> ConfigError:
    """Return the error that tells of all mistakes, each once.

    Args:
        origin: The file, say; it is not blamed where all that is wrong was given by ``--set``.
        lines: Each begins with a dotted path.
        given: By dotted path what was given by ``--set``, which the line then names.
    """
    told = [_with_source(line, given) for line in dict.fromkeys(lines)]
    all_set = all(line.startswith("--set ") for line in told)
    if len(told) > MOST_TOLD:
        told[MOST_TOLD:] = [f"and {len(told) - MOST_TOLD} more"]
    return ConfigError("\n".join(told) if all_set else "\n  ".join([f"{origin}:", *told]))


def shown(value: Any) -> str:
    """Return a wrong value as it is shown, cut where it is long."""
    if isinstance(value, list | tuple | dict):
        return f"a {type(value).__name__} of {len(value)}"
    if isinstance(value, int) and abs(value) >= 10**MOST_SHOWN:
        return "a huge number"  # Python refuses to write some of them out
    return _shortened(repr(value))


def _hint(loc: tuple[Any, ...], section: type[Section]) -> str:
    """Return the nearest valid name for a key that there is not, as the end of a sentence."""
    for part in loc[:-1]:
        annotation = section.model_fields[part].annotation if part in section.model_fields else None
        if isinstance(annotation, type) and issubclass(annotation, Section):
            section = annotation
    return did_you_mean(str(loc[-1]), section.model_fields)


def _with_source(line: str, given: Mapping[str, str]) -> str:
    """Return a line with the ``--set`` that its key was given by, or else one that it speaks of."""
    path = line.partition(":")[0]
    own = [text for key, text in given.items() if path == key or path.startswith(f"{key}.")]
    told = [text for key, text in given.items() if re.search(rf"(?<![\w.]){re.escape(key)}(?![\w.])", line)]
    source = next(iter(own + told), None)
    return line if source is None else f"--set {_shortened(source)}: {line}"


def _plain(types: Sequence[Any]) -> list[Any]:
    """Return types without the limits that they are annotated with."""
    return [get_args(each)[0] if get_origin(each) is Annotated else each for each in types]


def _shortened(text: str) -> str:
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}..."
