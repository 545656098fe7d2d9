"""Weights to hand on: a .safetensors file, with all that is needed to use them in its metadata.

Convention:
    The metadata has one entry ``racnn.KEY`` for each key of a checkpoint but ``model``, its value as JSON; the tensors
    are ``model``. ``racnn.digest`` is that of the content with its keys, and those of ``model``, in alphabetical order,
    because these files keep no order.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from racnn.engine.digest import digest
from racnn.written import write_file

SUFFIX = ".safetensors"
PREFIX = "racnn."


def write_published(path: Path, content: dict[str, Any]) -> None:
    """Write a network.

    Args:
        path: Where to; the folder is made.
        content: Plain types, and tensors under ``model`` alone.
    """
    model: dict[str, Tensor] = content["model"]
    # one stretch of memory each, which the format asks for
    model = {name: model[name].clone(memory_format=torch.contiguous_format) for name in sorted(model)}
    rest = json.loads(json.dumps({key: value for key, value in content.items() if key != "model"}))
    rest["digest"] = digest(_in_order(rest, model))
    metadata = {f"{PREFIX}{key}": json.dumps(value) for key, value in rest.items()}
    data = safetensors.torch.save(model, metadata)
    write_file(path, lambda file: file.write(data), flag="--out", ours=is_published)


def is_published(path: Path) -> bool:
    """Return whether a file is such a network, by its metadata."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return f"{PREFIX}digest" in (file.metadata() or {})
    except Exception:  # of several types
        return False


def read_published(path: Path) -> dict[str, Any]:
    """Return the content of a file, with its digest, which the caller checks.

    Raises:
        Exception: Of any type, where it is damaged.
    """
    with safetensors.safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        model = {name: file.get_tensor(name) for name in sorted(file.keys())}
    rest = {
        key.removeprefix(PREFIX): json.loads(metadata[key])
        for key in sorted(metadata)
        if key.startswith(PREFIX)
    }
    return _in_order(rest, model)


def _in_order(rest: dict[str, Any], model: dict[str, Tensor]) -> dict[str, Any]:
    content = {**rest, "model": model}
    return {key: content[key] for key in sorted(content)}
