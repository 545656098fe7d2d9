"""Look into the bytes of an .onnx file before anything in it is run: what it says of itself, and whether that can be.

An .onnx file is a message of Protocol Buffers (``ModelProto`` of onnx.proto): fields of a number and a kind, of which only a few
matter here. A file is refused unless it is one that ``racnn export`` wrote and nobody has changed since: a sha256 of all of it
stands in its metadata. Somebody who means harm can write that too; so nothing is run that reaches outside of the file: no data in
other files, no operators of other libraries, no loops.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

from racnn.errors import CheckpointError

KEY, SHA256 = "racnn", "sha256"  # of the metadata, and of what stands there
CARD = "model_card"  # likewise of the metadata
FORMAT = 1
GRAPH, METADATA, TRAINING, FUNCTIONS = 7, 14, 20, 25  # fields of a model
NODE, INITIALIZER, SPARSE = 1, 5, 15  # of a graph
OPERATOR, ATTRIBUTE, DOMAIN = 4, 5, 7  # of a node
TENSOR, INNER_GRAPH, TENSORS, INNER_GRAPHS, SPARSE_TENSOR, SPARSE_TENSORS = (
    5,
    6,
    10,
    11,
    22,
    23,
)  # of an attribute
EXTERNAL, LOCATION = 13, 14  # of a tensor
LOOPS = ("Loop", "Scan", "SequenceMap")
DEEPEST = 4  # graphs in graphs


def read_about(content: bytes, name: str) -> dict[str, Any]:
    """Return what an .onnx file says of itself, once it is known to be whole and to stay within itself.

    Args:
        content: Of the file.
        name: Of the file, for messages.

    Raises:
        CheckpointError: It is damaged, of another program or a later version, or reaches outside of itself.
    """
    try:
        graph, about = memoryview(b""), None
        for number, value in _fields(memoryview(content)):
            if number == GRAPH and isinstance(value, memoryview):
                if graph:  # others would read the two as one
                    raise CheckpointError(f"{name}: holds several graphs, which no export of racnn does")
                graph = value
            elif number in (TRAINING, FUNCTIONS):
                raise CheckpointError(
                    f"{name}: holds functions or training steps, which no export of racnn does"
                )
            elif number == METADATA and isinstance(value, memoryview):
                entry = _entry(value)
                if entry.get(1) == KEY.encode():
                    about = json.loads(entry[2])
        if not isinstance(about, dict) or not graph:
            raise CheckpointError(f"{name}: expected a file that `racnn export` wrote, found another one")
        if about.get("format") != FORMAT:
            raise CheckpointError(
                f"{name}: its format is {about.get('format')!r}, this version reads {FORMAT}: export it anew"
            )
        if sha256_of(content, about) != about.get(SHA256):
            raise CheckpointError(f"{name}: is damaged, or was changed after it was exported")
        _check_graph(graph, name, 0)
        if reason := _misfit(about):
            raise CheckpointError(f"{name}: what it says of itself cannot be: {reason}")
    except CheckpointError:
        raise
    except (ValueError, LookupError, TypeError, RecursionError):
        raise CheckpointError(
            f"{name}: expected an .onnx file, found something else, or it is damaged"
        ) from None
    return about


def _misfit(about: dict[str, Any]) -> str | None:
    """Return why the parts of what a file says of itself do not fit each other, in words."""
    names, scales, source = about["class_names"], about["scales"], about["source"]
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        return "class_names"
    if any(ord(character) < 32 for name in names for character in name):
        return "class_names hold control characters"
    if type(scales) is not int or not 1 <= scales <= 16:
        return "scales"
    if (
        type(source["size"]) is not int
        or not 1 <= source["size"] <= 4096
        or source["resize"] not in ("squash", "crop")
    ):
        return "source"
    early, caution = about["early_exit"], about["caution"]
    if early is not None and (len(early) != scales - 1 or not all(isinstance(each, float) for each in early)):
        return "early_exit"
    if caution is None:
        return None
    levels = caution["names"], caution["groups"]
    whole = len(levels[0]) == len(levels[1]) > 1 and all(len(each) == len(names) for each in levels[1])
    texts = [*levels[0], *(group for each in levels[1] for group in each)]
    weighed = caution["weight"] is None or isinstance(caution["weight"], float)
    return None if whole and weighed and all(isinstance(each, str) for each in texts) else "caution"


def sha256_of(content: bytes, about: dict[str, Any]) -> str:
    """Return the sha256 of a model's bytes, and of what it says of itself but for this very sha256."""
    found = hashlib.sha256()
    for number, value in _fields(memoryview(content)):
        own = number == METADATA and isinstance(value, memoryview) and _entry(value).get(1) == KEY.encode()
        if not own:
            found.update(f"{number} ".encode())
            found.update(value if isinstance(value, memoryview) else f"{value} ".encode())
    found.update(json.dumps({key: about[key] for key in sorted(about) if key != SHA256}).encode())
    return found.hexdigest()


def _entry(message: memoryview) -> dict[int, bytes]:
    """Return the name (1) and the text (2) of an entry of the metadata."""
    return {number: bytes(text) for number, text in _fields(message) if isinstance(text, memoryview)}


def _check_graph(graph: memoryview, name: str, depth: int) -> None:
    if depth > DEEPEST:
        raise CheckpointError(f"{name}: graphs lie too deep in graphs")
    for number, value in _fields(graph):
        if not isinstance(value, memoryview):
            continue
        if number == NODE:
            _check_node(value, name, depth)
        elif number == INITIALIZER:
            _check_tensor(value, name)
        elif number == SPARSE:
            raise CheckpointError(f"{name}: holds sparse weights, which no export of racnn does")


def _check_node(node: memoryview, name: str, depth: int) -> None:
    for number, value in _fields(node):
        if not isinstance(value, memoryview):
            continue
        if number == DOMAIN and bytes(value) not in (b"", b"ai.onnx"):
            raise CheckpointError(
                f"{name}: needs operators of '{bytes(value).decode(errors='replace')}', which are not run"
            )
        if number == OPERATOR and bytes(value).decode() in LOOPS:
            raise CheckpointError(
                f"{name}: holds a loop ({bytes(value).decode()}), which no export of racnn does"
            )
        if number == ATTRIBUTE:
            for inner, part in _fields(value):
                if not isinstance(part, memoryview):
                    continue
                if inner in (INNER_GRAPH, INNER_GRAPHS):
                    _check_graph(part, name, depth + 1)
                elif inner in (TENSOR, TENSORS):
                    _check_tensor(part, name)
                elif inner in (SPARSE_TENSOR, SPARSE_TENSORS):
                    raise CheckpointError(f"{name}: holds sparse weights, which no export of racnn does")


def _check_tensor(tensor: memoryview, name: str) -> None:
    if any(number == EXTERNAL or (number == LOCATION and value) for number, value in _fields(tensor)):
        raise CheckpointError(f"{name}: keeps weights in other files, which are not read")


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yield the fields of a message: their numbers, and a number or bytes each.

    Raises:
        ValueError: It is none.
    """
    place = 0
    while place < len(message):
        key, place = _varint(message, place)
        number, kind = key >> 3, key & 7
        if number == 0 or key >= 2**32:  # which others would read as another number
            raise ValueError(key)
        if kind == 0:
            value, place = _varint(message, place)
            yield number, value
            continue
        if kind == 2:
            size, place = _varint(message, place)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise ValueError(kind)
        if place + size > len(message):
            raise ValueError(size)
        yield number, message[place : place + size]
        place += size


def _varint(message: memoryview, place: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = message[place]
        place += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, place
    raise ValueError("too long")
