"""What a checkpoint may hold, and the digest of it: of values, independent of how they are stored."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

DEEPEST = 50  # levels of dictionaries and lists
LARGEST = 2**63  # beyond all whole numbers


def digest(content: Any) -> str:
    """Return the sha256 of nested dictionaries, lists, plain values and tensors, independent of how they are stored."""
    sha = hashlib.sha256()
    for chunk in _chunks(content):
        sha.update(chunk)
    return sha.hexdigest()


def disallowed(content: Any, *, room: int) -> str | None:
    """Return what there is in a content that no checkpoint holds, or None. Looking takes little time and memory.

    A small file can name one list or tensor a million times, or a tensor of a terabyte that repeats one number.

    Args:
        content: As it was read.
        room: Bytes of the file. Every value took one of them at least, every tensor as many as it has.
    """
    todo = [(content, 0)]
    values = size = 0
    while todo:
        node, depth = todo.pop()
        values += 1
        if type(node) in (dict, OrderedDict):
            todo += [(item, depth + 1) for pair in node.items() for item in pair]
        elif type(node) in (list, tuple):
            todo += [(item, depth + 1) for item in node]
        elif type(node) is Tensor:
            if node.layout is not torch.strided or node.is_meta or node.is_quantized:  # on a GPU is fine
                return f"a tensor of another kind ({node.layout}, {node.device})"
            size += node.numel() * node.element_size()
        elif type(node) is int:
            if abs(node) >= LARGEST:
                return "a number of more than 64 bits"
        elif type(node) not in (str, float, bool, type(None)):
            return f"a {type(node).__name__}"
        if values > room or size > room:
            return "more than the file has room for"
        if depth > DEEPEST:
            return f"more than {DEEPEST} levels"
    return None


def _chunks(node: Any) -> Iterator[bytes | memoryview]:
    if isinstance(node, dict):
        yield f"dict {len(node)};".encode()
        for key in node:
            yield f"{key!r}:".encode()
            yield from _chunks(node[key])
    elif isinstance(node, list | tuple):
        yield f"list {len(node)};".encode()
        for item in node:
            yield from _chunks(item)
    elif isinstance(node, Tensor):
        yield f"tensor {node.dtype} {tuple(node.shape)};".encode()
        plain = node.detach().cpu().contiguous()
        if plain.numel():
            yield plain.view(-1).view(torch.uint8).numpy().data
    else:
        yield f"{type(node).__name__} {node!r};".encode()
