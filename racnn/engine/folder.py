"""The folder of a run: may a run begin or go on there?"""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from racnn.config import Config, dump_config
from racnn.data import Data
from racnn.engine.checkpoint import is_whole
from racnn.engine.files import sweep, write_text
from racnn.engine.resume import check_resumable
from racnn.engine.stored import Content, Stored, open_checkpoint
from racnn.errors import CheckpointError, ConfigError, DamagedError, DataError

RUN_FILES = (
    "last.pt",
    "previous.pt",
    "best.pt",
    "config.yaml",
    "run.json",
    "metrics.jsonl",
    "tensorboard",
)
DUMP = "nonfinite.json"  # of the batch at which a run had to stop; it lasts until the folder's next run
MOST_NAMED = 20  # keys in one message
# What a resumed run may have otherwise: none of it changes the weights.
FREE_KEYS = (
    "run.out",
    "run.save_every",
    "run.log_every",
    "run.num_preview",
    "data.root",
    "data.num_workers",
    "data.cache",
    "model.weights",
    # the same but for rounding, and for batch norm, which sees the parts of a batch
    "run.micro_batch",
    "run.activation_checkpointing",
    "run.compile",
)


def open_folder(folder: Path, config: Config, *, resume: bool, overwrite: bool) -> Stored | None:
    """Return the checkpoint to resume from, or None where a new run may begin. Nothing is changed yet.

    Raises:
        CheckpointError: There is nothing to resume, or it is damaged or makes no sense.
        ConfigError: There is a run that should neither be resumed nor overwritten, or one of another configuration.
    """
    last = folder / "last.pt"
    if resume:
        stored = _open_last(last)
        _refuse_other_config(config, stored.config, folder)
        check_resumable(stored)
        return stored
    present = [name for name in RUN_FILES if (folder / name).exists()]
    if present and not overwrite:
        go_on = "go on with --resume, " if last.exists() else ""
        raise ConfigError(
            f"{folder} already holds a run ({', '.join(present)}): "
            f"{go_on}replace it with --overwrite, or choose another --out"
        )
    return None


def refuse_other_photos(content: Content, data: Data) -> None:
    """Refuse to resume on other training photos than those the run began with.

    Args:
        content: Of the checkpoint.
        data: As it is now.

    Raises:
        DataError: Photos were added or removed.
    """
    changed = set(data.training_names()) ^ set(content.train_names)
    if changed:
        raise DataError(
            f"--resume: {len(changed)} training photos were added or removed since the run began, for example "
            f"'{min(changed)}'; restore them, or begin a new run"
        )


def enter_folder(folder: Path, config: Config, starts: Sequence[dict[str, Any]], *, new: bool) -> str:
    """Make the folder ready: clear it for a new run, sweep it for one that goes on, write down what is run.

    Args:
        folder: Of the run.
        config: Goes into ``config.yaml``, resolved.
        starts: From :mod:`racnn.engine.provenance`, go into ``run.json``.
        new: Whether a run begins here.

    Returns:
        The text of ``config.yaml``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if new:
        clear_folder(folder)
    (folder / DUMP).unlink(missing_ok=True)
    sweep(folder / name for name in RUN_FILES)
    resolved = yaml.safe_dump(dump_config(config), sort_keys=False)
    write_text(folder / "config.yaml", resolved)
    write_text(folder / "run.json", json.dumps({"starts": starts}, indent=2) + "\n")
    return resolved


def clear_folder(folder: Path) -> None:
    """Delete an earlier run, and nothing else."""
    sweep(folder / name for name in RUN_FILES)
    for path in (folder / name for name in RUN_FILES):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _open_last(last: Path) -> Stored:
    if not last.exists():
        raise CheckpointError(f"--resume: {last.parent} holds no last.pt to go on from{_way_on(last)}")
    try:
        return open_checkpoint(last)
    except DamagedError as error:
        raise DamagedError(f"--resume: {error}{_way_on(last)}") from None


def _way_on(last: Path) -> str:
    """Return what to do where the last checkpoint cannot be used, as the end of a sentence."""
    previous = last.with_name("previous.pt")
    if not is_whole(previous):
        hint = "\nthere is no whole previous.pt to go on from instead; begin anew with --overwrite"
        return hint if last.exists() else ""
    return (
        f"\nto go on from {previous}, which was saved before it, run\n"
        f"  mv {shlex.quote(str(previous))} {shlex.quote(str(last))}\nand repeat the command"
    )


def _refuse_other_config(asked: Config, stored: Config, folder: Path) -> None:
    left, right = _flat(dump_config(asked)), _flat(dump_config(stored))
    scales = (stored.model.num_scales, asked.model.num_scales)
    keys = sorted(
        k for k in left.keys() | right.keys() if left.get(k) != right.get(k) and not k.startswith(FREE_KEYS)
    )
    if keys:
        lines = [f"  {key}: {right.get(key)} in the run, {left.get(key)} now" for key in keys[:MOST_NAMED]]
        if len(keys) > MOST_NAMED:
            lines.append(f"  and {len(keys) - MOST_NAMED} more")
        if scales[0] != scales[1]:
            lines.insert(0, f"  model.view_sizes: {scales[0]} scales in the run, {scales[1]} now")
        raise ConfigError(
            "--resume: the configuration differs from the run's:\n"
            + "\n".join(lines)
            + f"\nrepeat the run's own --set, or go on with --config {folder / 'config.yaml'} --out {folder} --resume"
        )


def _flat(node: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(node, dict):
        items = node.items()
    elif isinstance(node, list):
        items = enumerate(node)  # type: ignore[assignment]
    else:
        return {prefix: node}
    out: dict[str, Any] = {}
    for key, value in items:
        out |= _flat(value, f"{prefix}.{key}" if prefix else str(key))
    return out
