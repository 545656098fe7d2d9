"""The folder of a run: who may use it, what is in it, and whether a run may begin or go on there.

In the order of this module: the folder in the hands of its run; may the run use it; what must be as it was when it goes on;
a lock against other processes; the provenance that is written beside the weights.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import torch
import yaml

import racnn
from racnn.config import Config, dump_config
from racnn.data import Data
from racnn.data.contents import PhotoFile, read_photo_files, short_digests
from racnn.data.loader import num_left_over
from racnn.data.sources.catalog import Record
from racnn.data.sources.folder import class_places
from racnn.engine.checkpoint import (
    Content,
    Stored,
    check_resumable,
    is_whole,
    open_checkpoint,
    sweep,
    write_text,
)
from racnn.engine.distributed import ALONE, ProcessGroup
from racnn.errors import CheckpointError, ConfigError, DamagedError, DataError
from racnn.written import file_sha256, is_written, make_folders, read_record, refuse_blocked, remove_empty

if sys.platform != "win32":
    import fcntl

RUN_FILES = (
    "last.pt",
    "previous.pt",
    "best.pt",
    "config.yaml",
    "run.json",
    "metrics.jsonl",
    "results.csv",
    "curves.svg",
    "photos.json",
    "tensorboard",
    "descriptors",
    "views",
)
CHOICES = ("best.levels.json", "best.early_exit.json")  # written by `racnn evaluate`, or at a training's end
RESULTS = {"results.csv": b"step,phase,", "curves.svg": b"<svg "}  # how those begin that a run writes
# What the folders among them hold.
PATTERNS = {"tensorboard": "events.out.tfevents.*", "descriptors": "*.safetensors", "views": "views_*"}
DUMP = "nonfinite.json"  # of the batch at which a run had to stop; it lasts until the folder's next run
DUMP_KEYS = {"phase", "step", "values", "photos"}
MOST_NAMED = 20  # keys in one message
# What a resumed run may have otherwise: none of it changes the weights.
FREE_KEYS = (
    "run.out",
    "run.save_every",
    "run.log_every",
    "run.num_preview",
    "data.root",
    "data.levels",
    "data.num_workers",
    "data.cache",
    "model.weights",
    # the same but for rounding, and for batch norm, which sees the parts of a batch
    "data.eval_batch_size",
    "run.micro_batch",
    "run.activation_checkpointing",
    "run.compile",
)
LOCK = ".racnn.lock"
# what numbers and pixels hang on
PACKAGES = ("torch", "torchvision", "timm", "albumentations", "opencv-python-headless", "pillow", "numpy")


class RunDir:
    """The folder of a run in the hands of its first process, from the question whether it may be used to leaving it.

    Args:
        path: The folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: FolderLock | None = None
        self._entered = False
        self._photos: dict[str, PhotoFile] = {}

    def open(
        self, config: Config, processes: ProcessGroup, *, resume: bool, overwrite: bool, restarted: bool
    ) -> Stored | None:
        """Lock the folder and return what the run goes on from, or None where it is a new one, see :func:`open_folder`.

        A process that torchrun has started again goes on with the run of its own launch, whatever was asked when it began.

        Args:
            config: Configuration of the run.
            processes: The processes that train.
            resume: A run in the folder is to be gone on with.
            overwrite: A run in the folder is to be replaced.
            restarted: torchrun has started a process again.
        """
        refuse_blocked(self.path, "run.out")
        if any(0xD800 <= ord(character) < 0xE000 for character in str(self.path)):
            raise ConfigError(
                f"run.out: {self.path}: expected a name in UTF-8, or TensorBoard cannot write there"
            )
        if self.path.exists() or not resume:
            self._lock = FolderLock(self.path)
        last_is_there = (self.path / "last.pt").exists()
        if processes.launch is not None and processes.launch == launch_of(self.path):
            resume, overwrite = last_is_there, not last_is_there
        elif restarted and overwrite and last_is_there:
            raise ConfigError(
                f"--overwrite: torchrun has started these processes again and lost its store, so that the run in {self.path} "
                "may be their own; go on with --resume, or start anew"
            )
        stored = open_folder(self.path, config, resume=resume, overwrite=overwrite)
        progress = stored.content.progress if stored else None
        if progress and progress.best_key and not is_whole(self.path / "best.pt"):
            print("warning: best.pt cannot be read; the network at the end of the next phase takes its place")
            progress.best_key = []
        return stored

    def enter(self, config: Config, starts: Sequence[dict[str, Any]], *, new: bool) -> str:
        """Make the folder ready and return the text of its ``config.yaml``.

        Args:
            config: Goes into ``config.yaml``, resolved.
            starts: From :func:`with_start`, go into ``run.json``.
            new: A run begins here: an earlier one is deleted.
        """
        self._entered = True
        folder = self.path
        folder.mkdir(parents=True, exist_ok=True)
        if new:
            clear_folder(folder)
        if _is_dump(folder / DUMP):
            (folder / DUMP).unlink()
        sweep(folder / name for name in RUN_FILES)
        write_text(folder / "run.json", json.dumps({"starts": starts}, indent=2) + "\n")
        resolved = yaml.safe_dump(dump_config(config), sort_keys=False)
        write_text(folder / "config.yaml", resolved)
        if self._photos:
            write_text(folder / "photos.json", json.dumps(self._photos) + "\n")
        return resolved

    def read_photos(self, data: Data, *, again: bool) -> None:
        """Find out what the photos hold; ``again``: those that are as they were when the run was here last are not read.

        Raises:
            DataError: A photo cannot be read.
        """
        splits = [data.splits[name] for name in ("train", "held_out", "val") if name in data.splits]
        records = [record for photos in splits for record in photos.records]
        self._photos = read_photo_files(records, self._known_photos() if again else {})

    def refuse_other_photos(self, content: Content, data: Data, batch_size: int) -> None:
        """Refuse to go on with other photos, or other batches of them, than those the run began with.

        Raises:
            DataError: Photos were added or removed, hold something else, or are in another order or of other classes.
            CheckpointError: An earlier version stopped in an epoch whose batches would be others now.
        """
        refuse_other_batches(content, data, batch_size)
        refuse_other_photos(content, data, self.digests())

    def dump(
        self,
        phase: str,
        step: int,
        values: Mapping[str, float],
        records: Sequence[Record],
        processes: ProcessGroup,
    ) -> Path:
        """Write down the batch whose loss or gradient was not finite, and return where."""
        content = {
            "phase": phase,
            "step": step,
            "values": {name: str(value) for name, value in values.items()},
            "photos": [str(record.path or record.name) for record in records],
        }
        path = self.path / DUMP
        if processes.is_main_process:
            write_text(path, json.dumps(content, indent=2) + "\n")
        processes.wait()  # or torchrun would end the first process while it writes
        return path

    def digests(self) -> dict[str, str]:
        """Return by name the start of the sha256 of the photos that were read, as a checkpoint keeps it."""
        return short_digests(self._photos)

    def leave(self, step: int) -> None:
        """Let others in. A start that failed, before the first step and checkpoint, leaves nothing in their way."""
        if self._lock is None:
            return
        if self._entered and not step and not (self.path / "last.pt").exists():
            clear_folder(self.path)
        self._lock.release()

    def _known_photos(self) -> dict[str, PhotoFile]:
        """Return by name what the photos held when the folder was entered last, as far as that can be read."""
        try:
            rows = json.loads((self.path / "photos.json").read_text(encoding="utf-8"))
            return {
                name: PhotoFile(int(row[0]), int(row[1]), int(row[2]), str(row[3]))
                for name, row in rows.items()
            }
        except (
            OSError,
            ValueError,
            TypeError,
            AttributeError,
            LookupError,
            RecursionError,
        ):  # it only saves time
            return {}


def open_folder(folder: Path, config: Config, *, resume: bool, overwrite: bool) -> Stored | None:
    """Return the checkpoint to resume from, or None where a new run may begin. Nothing is changed yet.

    Raises:
        CheckpointError: There is nothing to resume, or it is damaged or makes no sense.
        ConfigError: There is a run that should neither be resumed nor overwritten, or one of another configuration.
    """
    last = folder / "last.pt"
    if resume:
        stored = _open_last(last)
        _refuse_foreign_results(folder)
        _refuse_edited_config(folder)
        _refuse_other_config(config, stored.config, folder)
        check_resumable(stored)
        return stored
    present = [name for name in (*RUN_FILES, DUMP) if os.path.lexists(folder / name)]
    if present == [DUMP] and _is_dump(folder / DUMP):  # a first step was not finite, and left nothing else
        return None
    if present and not is_run(folder):
        raise ConfigError(
            f"{folder} already holds a run's files ({', '.join(present)}), but none that this program wrote: there is no run.json "
            "of a run beside them; nothing is replaced: choose another --out, or move them away"
        )
    if present and not overwrite:
        go_on = "go on with --resume, " if last.exists() else ""
        raise ConfigError(
            f"{folder} already holds a run ({', '.join(present)}): "
            f"{go_on}replace it with --overwrite, or choose another --out"
        )
    _refuse_foreign_results(folder)
    _refuse_edited_config(folder)
    return None


def _refuse_foreign_results(folder: Path) -> None:
    """Refuse a table or curves of somebody else in a run's folder: runs of older versions wrote none.

    Raises:
        ConfigError: There are such.
    """
    for name, start in RESULTS.items():
        path = folder / name
        try:
            ours = not os.path.lexists(path) or path.read_bytes()[: len(start)] == start
        except OSError:
            ours = False
        if not ours:
            raise ConfigError(f"{path}: is where a run keeps its {name}, and no run wrote it; move it away")


def is_run(folder: Path) -> bool:
    """Return whether a run was begun in a folder: it holds the ``run.json`` of one."""
    try:
        found = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(found, dict) and isinstance(found.get("starts"), list)


def launch_of(folder: Path) -> str | None:
    """Return the name of the launch that was the last to enter a folder, see :class:`racnn.engine.distributed.ProcessGroup`."""
    try:
        name = json.loads((folder / "run.json").read_text(encoding="utf-8"))["starts"][-1]["launch"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):  # none, or not written by a run
        return None
    return name if isinstance(name, str) else None


def clear_folder(folder: Path) -> None:
    """Delete an earlier run, what was chosen for its network, and nothing else; ``run.json``, by which it is known to be one, last."""
    sweep(folder / name for name in RUN_FILES)
    with suppress(ConfigError):  # the record is somebody else's
        record = read_record(folder)
        for path in (folder / name for name in CHOICES):
            if path.is_file() and is_written(path, record):
                path.unlink()
    for path in (folder / name for name in sorted(RUN_FILES, key="run.json".__eq__)):
        if path.is_dir() and not path.is_symlink():
            remove_files(path)
        else:
            path.unlink(missing_ok=True)


def remove_files(folder: Path) -> None:
    """Delete what a run wrote into one of its folders, and the folder if nothing else is in it."""
    for file in folder.glob(PATTERNS[folder.name]):
        file.unlink()
    remove_empty([folder])


def refuse_output_among_classes(config: Config) -> None:
    """Refuse to write a run or a cache where its folder would be taken for a class the next time.

    Raises:
        ConfigError: ``run.out`` or ``data.cache`` lies in a folder of class folders.
    """
    data = config.data
    if data.dataset != "folder" or data.root is None or not data.root.expanduser().is_dir():
        return
    for key, path in (("run.out", Path(config.run.out)), ("data.cache", data.cache)):
        for place in class_places(data.root.expanduser()) if path is not None else ():
            assert path is not None
            if path.expanduser().resolve().is_relative_to(place.resolve()):
                raise ConfigError(
                    f"{key}: {path} lies in {place}, whose folders are classes; choose a folder elsewhere"
                )


def refuse_other_batches(content: Content, data: Data, batch_size: int) -> None:
    """Refuse to go on in the middle of an epoch whose last batch was a single photo, which it is no more.

    Raises:
        CheckpointError: An earlier version wrote the checkpoint there.
    """
    earlier = "train_digests" not in content.model_fields_set
    single = any(
        num_left_over(len(data.splits[split]), batch_size) == 1
        for split in ("train", "held_out")
        if split in data.splits
    )
    if earlier and single and content.progress is not None and content.progress.batch:
        raise CheckpointError(
            "--resume: an earlier version of racnn saved this run in the middle of an epoch whose last batch is a single photo, "
            "which now joins the batch before it; go on with that version to the end of the epoch, or begin a new run"
        )


def refuse_other_photos(content: Content, data: Data, contents: Mapping[str, str] | None = None) -> None:
    """Refuse to resume on other training photos than those the run began with.

    Args:
        content: Content of the checkpoint.
        data: The data set as it is now.
        contents: By name the digests of the photos, see :func:`racnn.data.contents.short_digests`.

    Raises:
        DataError: Photos were added or removed, hold something else, or are in another order or of other classes.
    """
    changed = set(data.training_names()) ^ set(content.train_names)
    if changed:
        raise DataError(
            f"--resume: {len(changed)} training photos were added or removed since the run began, for example "
            f"'{min(changed)}' (where a data set brings no split, another photo changes how all are split); "
            "restore them, or begin a new run"
        )
    if data.training_names() != list(content.train_names):
        raise DataError(
            "--resume: the training photos come in another order than when the run began; restore it, or begin a new run"
        )
    before = content.provenance[-1].get("photos") if content.provenance else None
    if not isinstance(before, dict):  # a checkpoint's provenance is whatever stands in it
        before = {}
    compared = {"train", "held_out"}
    if set(data.val_names) == set(
        content.val_names
    ):  # but for photos that cannot be read any more and are left out
        compared.add("val")
    for split, now in fingerprint(data).items():
        if split in compared and before.get(split, now) != now:
            raise DataError(
                f"--resume: photos of the split '{split}' have other classes than when the run began; restore them, or begin a new run"
            )
    if contents:
        then = dict(zip(content.train_names, content.train_digests, strict=False))
        then |= zip(content.val_names, content.val_digests, strict=False)
        exchanged = sorted(name for name in then.keys() & contents.keys() if then[name] != contents[name])
        if exchanged:
            raise DataError(
                f"--resume: {len(exchanged)} photos hold something else than when the run began, for example "
                f"{', '.join(exchanged[:3])}; restore them, or begin a new run"
            )


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


def _is_dump(path: Path) -> bool:
    """Return whether a file is what a run leaves that had to stop."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return not path.is_symlink() and isinstance(found, dict) and found.keys() == DUMP_KEYS


def _refuse_edited_config(folder: Path) -> None:
    """Refuse to replace a ``config.yaml`` that is not as a run writes it: with comments, or in another form."""
    path = folder / "config.yaml"
    if not os.path.lexists(path):
        return
    try:
        text = path.read_text(encoding="utf-8")
        written = yaml.safe_dump(yaml.safe_load(text), sort_keys=False) == text
    except (OSError, ValueError, yaml.YAMLError):
        written = False
    if not written or path.is_symlink():
        raise ConfigError(
            f"{path}: was changed by hand, and a run would replace it; move it to another place, and name it there with --config"
        )


class FolderLock:
    """Keeps other processes out of a run's folder until it is released, or this process ends, however it ends.

    It is a record lock, which the loader's workers do not inherit: they may outlive a process that was killed. Where the file
    system knows no locks, and on Windows, it keeps nobody out.

    Args:
        folder: Is made if it is not there.

    Raises:
        ConfigError: Another process holds it.
    """

    def __init__(self, folder: Path) -> None:
        self._made = make_folders(folder)
        self.path = folder / LOCK
        self.file: IO[str] | None = None
        if sys.platform != "win32":
            self.file = self._locked()
            while not os.fstat(self.file.fileno()).st_nlink:  # another process deleted it in between
                self.file.close()
                self.file = self._locked()

    def _locked(self) -> IO[str]:
        file = self.path.open("a")
        if sys.platform != "win32":
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                file.close()
                raise ConfigError(
                    f"{self.path.parent}: another process is training there; wait until it ends, or choose another --out"
                ) from None
            except OSError:
                pass
        return file

    def release(self) -> None:
        """Let others in. Folders that were made for this and are empty go."""
        self.path.unlink(missing_ok=True)
        remove_empty(self._made)
        if self.file is not None:
            self.file.close()


def provenance(
    config: Config, data: Data, device: torch.device, step: int, processes: ProcessGroup = ALONE
) -> dict[str, Any]:
    """Return what a start of a run is made of, in plain types.

    Args:
        config: Configuration of the run.
        data: Its photos; none is opened.
        device: Where it runs.
        step: From which on.
        processes: The processes that train.
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
        "processes": processes.size,
        "launch": processes.launch,
        "threads": torch.get_num_threads(),
        "seeds": {"run": config.run.seed, "split": config.data.split_seed},
        "photos": fingerprint(data),
        "weights": _digest_of_weights(config.model.weights),
    }


def with_start(starts: Sequence[dict[str, Any]], start: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the starts of a run with another one, which is left out if nothing but its step is new."""
    same = bool(starts) and {**starts[-1], "step": start["step"]} == start
    return [*starts] if same else [*starts, start]


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
