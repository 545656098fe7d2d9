"""What is needed to repeat a run, beside its configuration: versions, the code, the command, the device, the photos."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import racnn
from racnn.config import Config
from racnn.data import Data
from racnn.data.contents import PhotoFile, read_contents
from racnn.engine.distributed import ALONE, ProcessGroup
from racnn.written import file_sha256

DIGEST_LENGTH = 16  # hexadecimal digits, 64 bits
# what numbers and pixels hang on
PACKAGES = ("torch", "torchvision", "timm", "albumentations", "opencv-python-headless", "pillow", "numpy")


def provenance(
    config: Config, data: Data, device: torch.device, *, step: int, world: ProcessGroup = ALONE
) -> dict[str, Any]:
    """Return what a start of a run is made of, in plain types.

    Args:
        config: Configuration of the run.
        data: Its photos; none is opened.
        device: Where it runs.
        step: From which on.
        world: The processes that train.
    """
    return {
        "step": step,
        "command": shlex.join(sys.argv),
        "folder": os.getcwd(),  # what relative paths are relative to
        "versions": {
            "racnn": racnn.__version__,
            "python": platform.python_version(),
            **{name: _version(name) for name in PACKAGES},
        },
        "commit": commit_of(Path(racnn.__file__).parent.parent),
        "device": _device_name(device),
        "processes": world.size,
        "launch": world.launch,
        "threads": torch.get_num_threads(),
        "seeds": {"run": config.run.seed, "split": config.data.split_seed},
        "photos": fingerprint(data),
        "weights": _digest_of_weights(config.model.weights),
    }


def with_start(starts: Sequence[dict[str, Any]], start: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the starts of a run with another one, which is left out if nothing but its step is new."""
    same = bool(starts) and {**starts[-1], "step": start["step"]} == start
    return [*starts] if same else [*starts, start]


def read_photo_files(data: Data, known: Mapping[str, PhotoFile] | None = None) -> dict[str, PhotoFile]:
    """Return by name what the training and validation photos hold; nothing of drawn ones.

    Args:
        data: The photos.
        known: By name what they held before: one whose size and time are the same is not read again.

    Raises:
        DataError: A photo cannot be read.
    """
    known = known or {}
    records = [
        r
        for split in ("train", "held_out", "val")
        if split in data.splits
        for r in data.splits[split].records
    ]
    records = [record for record in records if record.path is not None]
    before = {
        record.path: known[record.name]
        for record in records
        if record.path is not None and record.name in known
    }
    files = read_contents([record.path for record in records if record.path is not None], before)
    return {record.name: file for record, file in zip(records, files, strict=True)}


def digests(files: Mapping[str, PhotoFile]) -> dict[str, str]:
    """Return by name the start of the sha256 of photos, as a checkpoint keeps it: enough to know them again."""
    return {name: file.sha256[:DIGEST_LENGTH] for name, file in files.items()}


def fingerprint(data: Data) -> dict[str, dict[str, Any]]:
    """Return, for each split, how many photos it has and the sha256 of their sorted names with their classes."""
    return {split: _fingerprint(data, split) for split in data.splits}


def _fingerprint(data: Data, split: str) -> dict[str, Any]:
    records = data.splits[split].records
    lines = sorted(f"{record.name}\t{data.class_names[record.label]}\n" for record in records)
    text = "".join(lines).encode(errors="surrogatepass")  # a file's name may be any bytes
    return {"num": len(lines), "sha256": hashlib.sha256(text).hexdigest()}


def _digest_of_weights(weights: str | None) -> str | None:
    """Return the sha256 of the file that the network's first weights come from, None where it is no file here."""
    if weights is None or not Path(weights).is_file():
        return None
    return file_sha256(Path(weights))


@functools.cache
def commit_of(root: Path) -> dict[str, Any] | None:
    """Return the commit of a checkout, and whether files were changed since; None where there is none."""
    if not (root / ".git").exists():
        return None
    try:
        commit = _git(root, "rev-parse", "HEAD")
        changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return {"sha": commit.strip(), "changed": bool(changed.strip())}


def _version(package: str) -> str | None:
    """Return what is installed, without importing it."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git(root: Path, *words: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(root), *words], capture_output=True, text=True, check=True, timeout=10
    )
    return done.stdout


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return f"cuda: {torch.cuda.get_device_name(device)}"
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return f"{device.type}: {next(models, platform.processor() or platform.machine())}"
