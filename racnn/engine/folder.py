"""The folder of a run: may a run begin or go on there?"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from racnn.config import Config, dump_config, parse_config
from racnn.data import Data
from racnn.engine.checkpoint import load_checkpoint
from racnn.errors import CheckpointError, ConfigError, DataError

RUN_FILES = ("last.pt", "best.pt", "config.yaml", "metrics.jsonl", "tensorboard", "nonfinite.json")
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
)


def open_folder(folder: Path, config: Config, *, resume: bool, overwrite: bool) -> dict[str, Any] | None:
    """Return the checkpoint to resume from, or None where a new run may begin. Nothing is changed yet.

    Raises:
        CheckpointError: There is nothing to resume.
        ConfigError: There is a run that should neither be resumed nor overwritten, or one of another configuration.
    """
    last = folder / "last.pt"
    if resume:
        if not last.exists():
            raise CheckpointError(f"--resume: {folder} holds no last.pt to go on from")
        content = load_checkpoint(last)
        _refuse_other_config(config, parse_config(content["config"], origin=str(last), stored=True), folder)
        return content
    present = [name for name in RUN_FILES if (folder / name).exists()]
    if present and not overwrite:
        go_on = "go on with --resume, " if last.exists() else ""
        raise ConfigError(
            f"{folder} already holds a run ({', '.join(present)}): "
            f"{go_on}replace it with --overwrite, or choose another --out"
        )
    return None


def refuse_other_photos(content: Mapping[str, Any], data: Data) -> None:
    """Refuse to resume on other classes or training photos than those the run began with.

    Args:
        content: Of the checkpoint.
        data: As it is now.

    Raises:
        DataError: Classes were renamed, reordered, added or removed; or photos were.
    """
    names, known = data.class_names, content["class_names"]
    if names != known:
        pairs = itertools.zip_longest(names, known, fillvalue="none")
        position, (now, then) = next((i, pair) for i, pair in enumerate(pairs) if pair[0] != pair[1])
        raise DataError(
            f"--resume: the classes are no longer those the run began with: class {position + 1} is '{now}', was '{then}'; "
            "restore them, or begin a new run"
        )
    changed = set(data.training_names()) ^ set(content["train_names"])
    if changed:
        raise DataError(
            f"--resume: {len(changed)} training photos were added or removed since the run began, for example "
            f"'{min(changed)}'; restore them, or begin a new run"
        )


def clear_folder(folder: Path) -> None:
    """Delete an earlier run, and nothing else."""
    for path in (folder / name for name in RUN_FILES):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _refuse_other_config(asked: Config, stored: Config, folder: Path) -> None:
    left, right = _flat(dump_config(asked)), _flat(dump_config(stored))
    keys = sorted(
        k for k in left.keys() | right.keys() if left.get(k) != right.get(k) and not k.startswith(FREE_KEYS)
    )
    if keys:
        lines = [f"  {key}: {right.get(key)} in the run, {left.get(key)} now" for key in keys]
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
