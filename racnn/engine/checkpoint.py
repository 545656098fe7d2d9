"""Checkpoints: one file that ``torch.load(weights_only=True)`` reads, written atomically, checked by a digest.

The digest covers names, types and bytes of everything in the file and travels inside it, under ``digest``.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from racnn.errors import CheckpointError

FORMAT = 1


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint so that a crash at any moment leaves the old one or the new one, never half of one.

    Args:
        path: Where to.
        content: Plain types and tensors only: what ``weights_only`` loading accepts.
    """
    content = {"format": FORMAT, **content}
    content["digest"] = digest(content)
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU and check its digest. Nothing in the file is ever executed.

    Raises:
        CheckpointError: Missing, damaged, not a checkpoint of this program, or of a newer format.
    """
    if path.is_dir():
        inside = ", ".join(str(path / name) for name in ("best.pt", "last.pt") if (path / name).is_file())
        raise CheckpointError(
            f"{path}: a folder; expected a checkpoint" + (f", such as {inside}" if inside else "")
        )
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (
        Exception
    ):  # a damaged or foreign file raises any of a dozen types; torch's words advise to trust it
        raise CheckpointError(
            f"{path}: cannot be read as a checkpoint: damaged, or another kind of file"
        ) from None
    needed = {"format", "model", "config", "class_names", "digest"}
    if not isinstance(content, dict) or not needed <= content.keys():
        raise CheckpointError(
            f"{path}: not a racnn checkpoint (expected the keys {', '.join(sorted(needed))})"
        )
    if content["format"] != FORMAT:
        raise CheckpointError(
            f"{path}: checkpoint format {content['format']}, this version reads format {FORMAT}"
        )
    recorded = content.pop("digest")
    if digest(content) != recorded:
        raise CheckpointError(f"{path}: damaged, its content does not match its digest")
    return content


def digest(content: Any) -> str:
    """Return the sha256 of nested dictionaries, lists, plain values and tensors, independent of how they are stored."""
    sha = hashlib.sha256()
    for chunk in _chunks(content):
        sha.update(chunk)
    return sha.hexdigest()


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
