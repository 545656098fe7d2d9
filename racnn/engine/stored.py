"""What is in a checkpoint, checked: a digest proves that a file is as it was written, not that it was well written."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from racnn.config import Config, parse_config
from racnn.engine.checkpoint import load_checkpoint
from racnn.engine.progress import Count, Progress
from racnn.errors import CheckpointError, ConfigError
from racnn.models import RACNN, build_model
from racnn.sections import ModelSection

MOST_NAMED = 5  # weights, or other faults, in one message
Name = Annotated[str, Field(strict=True)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)


Checked = TypeVar("Checked", bound=_Part)


class Report(_Part):
    """What is read of a stored report on the validation photos; the whole of it is in ``val_report``."""

    num_images: Count
    top1: dict[Name, float]
    log_prob: dict[Name, float]


class Content(_Part):
    """The content of a checkpoint; what only some of them have is None in the others."""

    format: Count
    model: dict[Name, Tensor]
    config: dict[Name, Any]
    dataset: Name
    class_names: list[Name] = Field(min_length=2)
    val_names: list[Name]
    train_names: list[Name]
    trained_scales: Count
    fusion_trained: bool = Field(strict=True)
    step: Count
    provenance: list[dict[Name, Any]] = []
    # in the order of the names; empty for drawn photos and in files of earlier versions
    train_digests: list[Name] = []
    val_digests: list[Name] = []
    # best.pt
    phase: Name | None = None
    val_report: dict[Name, Any] | None = None
    # last.pt
    progress: Progress | None = None
    optimizer: dict[Name, Any] | None = None


@dataclass(frozen=True)
class Stored:
    """A checkpoint that was read and checked.

    Attributes:
        path: Where it was read from.
        content: Content of the file.
        config: Configuration of the run.
        network: The one that ``content.model`` belongs to, on the meta device: names and shapes without numbers.
    """

    path: Path
    content: Content
    config: Config
    network: RACNN


def open_checkpoint(path: Path) -> Stored:
    """Read a checkpoint or an exported .safetensors file, and check that its parts fit each other.

    Raises:
        CheckpointError: It cannot be read, see :func:`racnn.engine.checkpoint.load_checkpoint`; or a part has the
            wrong type or value, or the weights do not fit the configuration and the classes.
        ConfigError: The configuration in it cannot be used.
    """
    return check_content(load_checkpoint(path), path)


def check_content(values: Mapping[str, Any], path: Path) -> Stored:
    """Return what was read from a file, checked."""
    content = _validated(Content, values, path)
    if content.val_report is not None:
        _validated(Report, content.val_report, path, part="val_report.")
    for name in ("config", "val_report", "provenance"):
        _refuse_unplain(getattr(content, name), f"{path}: {name}")
    config = parse_config(content.config, origin=f"{path}: config", stored=True)
    if content.trained_scales > config.model.num_scales:
        raise CheckpointError(
            f"{path}: trained_scales: {content.trained_scales}, "
            f"but config.model.view_sizes has {config.model.num_scales} scales"
        )
    network = _fitting_network(content.model, config.model, content.class_names, path)
    return Stored(path=path, content=content, config=config, network=network)


def _validated(model: type[Checked], values: Mapping[str, Any], path: Path, *, part: str = "") -> Checked:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        found = [
            f"  {part}{'.'.join(map(str, item['loc'][:3]))}: {item['msg'][0].lower()}{item['msg'][1:]}"
            for item in error.errors(include_url=False, include_input=False)
        ]
        lines = list(dict.fromkeys(found))
        told = "\n".join(lines[:MOST_NAMED] + ["  ..."] * (len(lines) > MOST_NAMED))
        raise CheckpointError(f"{path}: not the content of a checkpoint:\n{told}") from None


def _refuse_unplain(node: Any, where: str) -> None:
    """Refuse what is no plain type with keys of text, where everything is to be read, printed or written as JSON."""
    if isinstance(node, Tensor):
        raise CheckpointError(f"{where}: holds a tensor")
    if isinstance(node, dict):
        if odd := [key for key in node if not isinstance(key, str)]:
            raise CheckpointError(f"{where}: has the key {odd[0]!r}, expected text")
        node = list(node.values())
    for item in node if isinstance(node, list | tuple) else ():
        _refuse_unplain(item, where)


def _fitting_network(
    state: Mapping[str, Tensor], config: ModelSection, class_names: Sequence[str], path: Path
) -> RACNN:
    """Return the network on the meta device, where size costs nothing, if the weights fit it.

    Raises:
        CheckpointError: They do not: other numbers of scales or classes, other names or shapes, or not finite.
    """
    heads = [match[1] for name in state if (match := re.fullmatch(r"classifiers\.(\d+)\.weight", name))]
    if len(heads) != config.num_scales:
        raise CheckpointError(
            f"{path}: the weights are of {len(heads)} scales, but config.model.view_sizes has {config.num_scales}"
        )
    rows = {state[f"classifiers.{head}.weight"].shape[:1].numel() for head in heads}
    if rows != {len(class_names)}:
        raise CheckpointError(
            f"{path}: the weights are of {', '.join(map(str, sorted(rows)))} classes, but class_names has {len(class_names)}"
        )
    try:
        with torch.device("meta"):
            network = build_model(config, num_classes=len(class_names), weights=False)
    except ConfigError as error:
        raise ConfigError(f"{path}: config: {error}") from None
    if wrong := sorted(_misfits(state, network.state_dict())):
        more = f" and {len(wrong) - MOST_NAMED} more" if len(wrong) > MOST_NAMED else ""
        raise CheckpointError(
            f"{path}: the weights do not fit the configuration stored beside them: "
            f"{'; '.join(wrong[:MOST_NAMED])}{more}"
        )
    return network


def _misfits(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> Iterator[str]:
    yield from (f"{name} is missing" for name in own.keys() - state.keys())
    yield from (f"{name} belongs to no part of it" for name in state.keys() - own.keys())
    for name in own.keys() & state.keys():
        if (found := _kind(state[name])) != (expected := _kind(own[name])):
            yield f"{name} is {found} instead of {expected}"
        elif not state[name].isfinite().all():
            yield f"{name} has values that are not finite"


def _kind(value: Tensor) -> str:
    return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
