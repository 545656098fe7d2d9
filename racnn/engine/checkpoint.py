"""Checkpoints: one file that ``torch.load(weights_only=True)`` reads, written as a whole, checked by a digest.

In the order of this module: writing and reading a file; what its content must be; where a run stands in it, and whether it
may go on from there; the .safetensors file that is handed on; a description in words.

The digest covers names, types and bytes of everything in the file and travels inside it, under ``digest``. A digest proves
that a file is as it was written, not that it was well written: so the parts are checked against each other, too. A file of
an older format is brought up to date as it is read.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, BinaryIO, TypeVar

import safetensors
import safetensors.torch
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn

from racnn.config import Config, parse_config
from racnn.engine.loop import build_optimizer
from racnn.errors import CheckpointError, ConfigError, DamagedError, UserError
from racnn.models import build_model
from racnn.models.phase import GradientPhase, Phase, upcoming
from racnn.models.weights import what_it_is
from racnn.written import write_file

FORMAT = 2
NAMES = ("last.pt", "previous.pt", "best.pt")
NEEDED = {"format", "model", "config", "class_names", "digest"}
DEEPEST = 50  # levels of dictionaries and lists
LARGEST = 2**63  # beyond all whole numbers
MOST_NAMED = 5  # weights, classes or other faults in one message
SUFFIX = ".safetensors"  # of an exported network
PREFIX = "racnn."  # of the keys of its metadata
# What the optimizers keep of each parameter; `step` is one number, the others have the parameter's shape.
KEPT = {"sgd": {"momentum_buffer"}, "adamw": {"step", "exp_avg", "exp_avg_sq"}}
NEVER_NEGATIVE = {"step", "exp_avg_sq"}
Name = Annotated[str, Field(strict=True)]
Count = Annotated[int, Field(ge=0, le=10**15, strict=True)]  # what a checkpoint says is held to that


# --- files --------------------------------------------------------------------------------------------------


def _from_format_1(content: dict[str, Any]) -> dict[str, Any]:
    """The layers of the compact APN were not normalised."""
    config = content["config"]
    apn = config["model"].get("apn", "compact")
    model = {**config["model"], "apn": "compact_unnormalised" if apn == "compact" else apn}
    return {**content, "config": {**config, "model": model}}


# For each older format, what turns a content of it into one of the next. Add a function here, raise FORMAT, and make
# a fixture of the new format with tests/fixtures/make.py; the old ones stay.
MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {1: _from_format_1}


def save_checkpoint(path: Path, content: dict[str, Any], *, previous: Path | None = None) -> None:
    """Write a checkpoint so that a crash at any moment leaves the old one or the new one, never half of one.

    Args:
        path: Where to.
        content: Plain types and tensors only: what ``weights_only`` loading accepts.
        previous: Where in the same folder to keep the checkpoint that is replaced.
    """
    content = {"format": FORMAT, **content}
    found = disallowed(content, room=sys.maxsize)
    assert found is None, found
    content["digest"] = digest(content)
    write_atomically(path, lambda file: _write(content, file), previous=previous)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint, or an exported .safetensors file, onto the CPU. Nothing in the file is ever executed.

    Raises:
        CheckpointError: Missing, damaged, not a checkpoint of this program, or of a newer format. Whole checkpoints
            beside it are named.
    """
    return up_to_date(as_written(path), path)


def as_written(path: Path) -> dict[str, Any]:
    """Return the content of a file with its own format and digest, which was checked; raise as above."""
    try:
        return _verified(path)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such checkpoint{_whole_beside(path)}") from None
    except DamagedError as error:
        raise DamagedError(f"{error}{_whole_beside(path)}") from None


def _whole_beside(path: Path) -> str:
    """Return which other checkpoints of a folder can be read, as the end of a sentence."""
    others = [str(other) for name in NAMES if (other := path.with_name(name)) != path and is_whole(other)]
    return f"; whole in the same folder: {', '.join(others)}" if others else ""


def is_whole(path: Path) -> bool:
    """Return whether a file is a checkpoint that can be read."""
    try:
        up_to_date(_verified(path), path)
    except (CheckpointError, OSError):
        return False
    return True


def up_to_date(content: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return a content as this version writes it, without its digest, which was that of the file.

    Raises:
        CheckpointError: It is of a newer format, or not of the format it says.
    """
    content = {key: value for key, value in content.items() if key != "digest"}
    number = content["format"]
    if type(number) is not int or number < 1:
        raise CheckpointError(f"{path}: format: expected a number from 1 to {FORMAT}, got {number!r}")
    if number > FORMAT:
        raise CheckpointError(
            f"{path}: checkpoint format {number} is newer than this version of racnn, which reads up to format {FORMAT}"
        )
    for old in range(number, FORMAT):
        try:
            content = {**MIGRATIONS[old](content), "format": old + 1}
        except (AttributeError, IndexError, KeyError, TypeError, ValueError):  # nothing in it is checked yet
            raise CheckpointError(f"{path}: its content is not that of checkpoint format {old}") from None
    return content


def _write(content: dict[str, Any], file: BinaryIO) -> None:
    try:
        torch.save(content, file)
    except RuntimeError as error:
        cause = error.__context__
        if isinstance(
            cause, (OSError, SystemExit)
        ):  # torch covers it with a complaint that the file is not whole
            raise cause from None
        raise


def _verified(path: Path) -> dict[str, Any]:
    if path.is_dir():
        inside = ", ".join(str(path / name) for name in ("best.pt", "last.pt") if (path / name).is_file())
        raise CheckpointError(
            f"{path}: a folder; expected a checkpoint" + (f", such as {inside}" if inside else "")
        )
    if not path.is_file():
        raise FileNotFoundError(path)
    room = path.stat().st_size
    try:
        content = read_published(path) if path.suffix == SUFFIX else _read(path, room)
    except Exception as error:  # of a dozen types; torch's words advise to trust the file
        raise DamagedError(f"{path}: cannot be read as a checkpoint: {what_it_is(path, error)}") from None
    if not isinstance(content, dict) or not content.keys() >= NEEDED:
        raise DamagedError(
            f"{path}: not a racnn checkpoint (expected the keys {', '.join(sorted(NEEDED))}); weights alone are given to "
            "training, as model.weights"
        )
    if found := disallowed(content, room=room):
        raise DamagedError(f"{path}: holds {found}, which no racnn checkpoint does")
    if digest({key: value for key, value in content.items() if key != "digest"}) != content["digest"]:
        raise DamagedError(f"{path}: damaged, its content does not match its digest")
    return content


def _read(path: Path, room: int) -> Any:
    """Read what torch wrote, unless it would unpack to more than the file: torch itself never packs."""
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
    if sum(record.file_size for record in records) > room:
        raise ValueError("packed")
    return torch.load(path, map_location="cpu", weights_only=True)


def write_atomically(path: Path, write: Callable[[BinaryIO], Any], *, previous: Path | None = None) -> None:
    """Write a file beside its place, put it on the disk, and only then in its place.

    Args:
        path: Where to.
        write: Called with the open file.
        previous: Where in the same folder to keep the file that is replaced, if there is one. Until the last moment
            that one also stands at ``path``, so that there is no moment without it.
    """
    temporary = temporary_of(path)
    temporary.unlink(missing_ok=True)
    try:
        with temporary.open("xb") as file:  # never through a link
            write(file)
            file.flush()
            os.fsync(file.fileno())
        if previous is not None and path.exists():
            _keep(path, previous)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)  # room on a full disk
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_text(path: Path, text: str) -> None:
    """Write a text as a whole."""
    write_atomically(path, lambda file: file.write(text.encode()))


def temporary_of(path: Path) -> Path:
    """Return where a file is written before it is put in its place."""
    return path.with_name(f".{path.name}.tmp")


def sweep(paths: Iterable[Path]) -> None:
    """Delete what a crash left of files that were being written."""
    for path in paths:
        temporary_of(path).unlink(missing_ok=True)


def _keep(path: Path, previous: Path) -> None:
    """Give a file a second name; nothing is copied where the file system can do that."""
    temporary = temporary_of(previous)
    temporary.unlink(missing_ok=True)
    try:
        os.link(path, temporary)
    except OSError:
        shutil.copyfile(path, temporary)
    os.replace(temporary, previous)
    temporary.unlink(missing_ok=True)  # to replace a file by another name of itself does nothing


# --- digest -------------------------------------------------------------------------------------------------


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
        content: Content of the file, as it was read.
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


# --- content ------------------------------------------------------------------------------------------------


@dataclass
class Progress:
    """Where a run stands, in plain types that a checkpoint can hold.

    Attributes:
        outcomes: For each finished phase, whether it changed the network.
        epoch: Finished epochs of the phase.
        batch: Finished batches of the epoch.
        step: Optimizer steps of the whole run.
        total_epoch: Epochs begun in the whole run, which the photos' changes are drawn from.
        stale: Epochs since the phase's best one.
        start: The phase's validation items before it began; None until it has.
        best: The phase's best validation items, and the weights that gave them, where the phase keeps the best.
        trained_scales: How many scales have been trained so far.
        fusion_trained: Whether the fusion layer has been.
        best_key: Rank of ``best.pt``: how complete the network was, its top-1 and mean log-probability.
        log_length: Length of ``metrics.jsonl`` in bytes when the checkpoint was written.
        state: What the phase's steps need beside the network, see :meth:`racnn.models.phase.GradientPhase.between_epochs`.
        early_exit: When to stop looking, where a phase has chosen it: :class:`racnn.models.early_exit.EarlyExit` in
            plain types.
    """

    outcomes: list[bool] = field(default_factory=list)
    epoch: Count = 0
    batch: Count = 0
    step: Count = 0
    total_epoch: Count = 0
    stale: Count = 0
    start: dict[str, float] | None = None
    best: dict[str, float] | None = None
    best_epoch: Count = 0
    best_weights: dict[str, Tensor] | None = None
    trained_scales: Count = 0
    fusion_trained: bool = False
    best_key: list[float] = field(default_factory=list)
    log_length: Count = 0
    state: dict[str, Tensor] = field(default_factory=dict)
    early_exit: dict[str, Any] | None = None


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
    early_exit: dict[Name, Any] | None = None
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
    network: nn.Module


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
    for name in ("config", "val_report", "provenance", "early_exit"):
        _refuse_unplain(getattr(content, name), f"{path}: {name}")
    config = parse_config(content.config, origin=f"{path}: config", stored=True)
    if content.trained_scales > config.model.num_scales:
        raise CheckpointError(
            f"{path}: trained_scales: {content.trained_scales}, "
            f"but config.model.view_sizes has {config.model.num_scales} scales"
        )
    network = _fitting_network(content.model, config, content.class_names, path)
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
    state: Mapping[str, Tensor], config: Config, class_names: Sequence[str], path: Path
) -> nn.Module:
    """Return the network on the meta device, where size costs nothing, if the weights fit it.

    Raises:
        CheckpointError: They do not: other names or shapes, or not finite.
    """
    try:
        with torch.device("meta"):
            network: nn.Module = build_model(config.model, num_classes=len(class_names), weights=False)
    except ConfigError as error:
        raise ConfigError(f"{path}: config: {error}") from None
    if wrong := sorted(_misfits(state, network.state_dict())):
        more = f" and {len(wrong) - MOST_NAMED} more" if len(wrong) > MOST_NAMED else ""
        raise CheckpointError(
            f"{path}: the weights do not fit the network of {config.model.num_scales} scales and {len(class_names)} classes "
            f"that is described beside them: {'; '.join(wrong[:MOST_NAMED])}{more}"
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


# --- going on -----------------------------------------------------------------------------------------------


def check_resumable(stored: Stored) -> Progress:
    """Return where the run of a checkpoint stood.

    Raises:
        CheckpointError: It does not say, or says what cannot be of its configuration and network.
    """
    progress, optimizer = stored.content.progress, stored.content.optimizer
    if progress is None:
        raise CheckpointError(
            f"{stored.path}: does not say where its run stood, so it cannot be gone on from"
        )
    faults = list(_faults_of_weights(progress, stored))
    if (
        phase := upcoming(stored.config.schedule, stored.config.model.num_scales, progress.outcomes)
    ) is not None:
        faults += _faults_of_progress(progress, phase, stored)
        if isinstance(phase, GradientPhase) and optimizer is not None:
            own = build_optimizer(stored.network, phase)
            faults += _faults_of_optimizer(optimizer, own, KEPT[phase.optimizer])
        elif optimizer is not None:
            faults.append(f"optimizer is there, but phase {phase.name} takes no gradient steps")
    if faults:
        raise CheckpointError(f"{stored.path}: " + "; ".join(faults))
    return progress


def restore_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Fill a fresh optimizer with what a checkpoint kept of it; rates and the like are the configuration's."""
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state["state"], "param_groups": groups})


def _faults_of_weights(progress: Progress, stored: Stored) -> Iterator[str]:
    own = stored.content.model
    for name, value in (progress.best_weights or {}).items():
        if name not in own or own[name].shape != value.shape or own[name].dtype != value.dtype:
            yield f"progress.best_weights.{name} fits no part of the network"
    for name in ("step", "trained_scales", "fusion_trained"):
        said, twice = getattr(progress, name), getattr(stored.content, name)
        if said != twice:
            yield f"progress.{name} is {said}, but {name} is {twice}"


def _faults_of_progress(progress: Progress, phase: Phase, stored: Stored) -> Iterator[str]:
    if progress.epoch > phase.num_epochs():
        yield f"progress.epoch is {progress.epoch}, but phase {phase.name} has {phase.num_epochs()} epochs"
    scales = max(progress.trained_scales, phase.num_scales_run(stored.config.model.num_scales))
    names = set(phase.score_names(scales))
    if progress.best is not None and progress.best.keys() != names:
        yield f"progress.best has {sorted(progress.best)}, but phase {phase.name} is judged by {sorted(names)}"
    fuses = phase.trains_fusion and stored.config.model.num_scales > 1
    if fuses and progress.start is not None and not progress.fusion_trained:
        yield f"progress.fusion_trained is False in the middle of phase {phase.name}"
    if isinstance(phase, GradientPhase) and progress.start is not None:
        yield from phase.faults_of_state(progress.state, stored.network)
    begun = progress.epoch > 0 or progress.best is not None
    if phase.keep != "last" and begun and (progress.best is None or progress.best_weights is None):
        yield f"progress.best_weights is missing, which phase {phase.name} keeps"


def _faults_of_optimizer(
    state: Mapping[str, Any], optimizer: torch.optim.Optimizer, kept: set[str]
) -> Iterator[str]:
    try:
        sizes, entries = [len(group["params"]) for group in state["param_groups"]], dict(state["state"])
    except (LookupError, TypeError, ValueError):
        yield "optimizer is not what an optimizer keeps"
        return
    if sizes != [len(group["params"]) for group in optimizer.param_groups]:
        yield "optimizer.param_groups are not those of the phase"
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for number, entry in entries.items():
        known = type(number) is int and 0 <= number < len(parameters)
        if not known or not isinstance(entry, dict) or entry.keys() not in (set(), kept):
            yield f"optimizer.state.{number} is of no parameter of the phase"
            continue
        for name, value in entry.items():
            if not _may_be(name, value, parameters[number]):
                yield f"optimizer.state.{number}.{name} does not fit"


def _may_be(name: str, value: Any, parameter: Tensor) -> bool:
    """Return whether an optimizer can have kept this of a parameter; SGD keeps None before its first step."""
    if value is None:
        return name == "momentum_buffer"
    shape = torch.Size() if name == "step" else parameter.shape
    if not isinstance(value, Tensor) or value.shape != shape or value.dtype != torch.float32:
        return False
    return bool(value.isfinite().all()) and not (name in NEVER_NEGATIVE and bool((value < 0).any()))


# --- handing on ---------------------------------------------------------------------------------------------


def write_published(path: Path, content: dict[str, Any], card: str | None = None) -> None:
    """Write a network.

    Args:
        path: Where to; the folder is made.
        content: Plain types, and tensors under ``model`` alone.
        card: A model card, put into the metadata beside it.
    """
    model: dict[str, Tensor] = content["model"]
    # one stretch of memory each, which the format asks for
    model = {name: model[name].clone(memory_format=torch.contiguous_format) for name in sorted(model)}
    rest = json.loads(json.dumps({key: value for key, value in content.items() if key != "model"}))
    rest["digest"] = digest(_in_order(rest, model))
    metadata = {f"{PREFIX}{key}": json.dumps(value) for key, value in rest.items()}
    metadata |= {} if card is None else {"model_card": card}
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


def write_rows(path: Path, key: str, rows: dict[str, Tensor]) -> None:
    """Write tensors that can be made again, under a key that says from what."""
    path.parent.mkdir(exist_ok=True)
    plain = {name: rows[name].contiguous() for name in sorted(rows)}
    data = safetensors.torch.save(plain, {f"{PREFIX}key": key, f"{PREFIX}digest": digest(plain)})
    write_atomically(path, lambda file: file.write(data))


def read_rows(path: Path, key: str) -> dict[str, Tensor] | None:
    """Return the tensors of a file if they are whole and were written under this key."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get(f"{PREFIX}key") != key:
                return None
            rows = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except Exception:  # missing or damaged, of several types
        return None
    return rows if digest(dict(sorted(rows.items()))) == metadata.get(f"{PREFIX}digest") else None


# --- in words -----------------------------------------------------------------------------------------------


def describe(path: Path) -> dict[str, Any]:
    """Return what a checkpoint or an exported file is, ready for ``json.dumps``.

    Raises:
        CheckpointError: It cannot be read, or makes no sense.
    """
    written = as_written(path)
    stored = check_content(up_to_date(written, path), path)
    content, model = stored.content, stored.config.model
    report = content.val_report
    return {
        "path": str(path),
        "file_size": path.stat().st_size,
        "format": written["format"],
        "digest": written["digest"],
        "dataset": content.dataset,
        "num_classes": len(content.class_names),
        "class_names": content.class_names,
        "num_train": len(content.train_names),
        "num_val": len(content.val_names),
        "backbone": model.backbone,
        "view_sizes": list(model.view_sizes),
        "trained_scales": content.trained_scales,
        "fusion_trained": content.fusion_trained,
        "step": content.step,
        "position": _position(stored),
        "parameters": count_parameters(stored.network),
        "val_top1": report["top1"] if report else None,
        "provenance": content.provenance,
    }


def count_parameters(network: nn.Module) -> dict[str, int]:
    """Return the number of parameters of each part of a network."""
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in network.named_children()}
    return {name: count for name, count in counts.items() if count}


def unfinished(last: Path, train_names: Sequence[str]) -> str | None:
    """Return where in its schedule the run of a ``last.pt`` stands; None where it has ended, or is not one on these photos."""
    if not last.is_file():
        return None
    try:
        stored = open_checkpoint(last)
    except UserError:
        return None
    progress, config = stored.content.progress, stored.config
    if progress is None or stored.content.train_names != list(train_names):
        return None
    if upcoming(config.schedule, config.model.num_scales, progress.outcomes) is None:
        return None
    return _position(stored)


def _position(stored: Stored) -> str | None:
    """Return where in its schedule a run stood; an exported file need not know."""
    progress, name = stored.content.progress, stored.content.phase
    if progress is None:
        return f"end of phase {name}" if name else None
    phase = upcoming(stored.config.schedule, stored.config.model.num_scales, progress.outcomes)
    if phase is None:
        return "end of the schedule"
    more = f", and {progress.batch} batches of the next, which is not yet measured" if progress.batch else ""
    return f"in phase {phase.name}, {progress.epoch} of {phase.num_epochs()} epochs done{more}"


def format_description(found: Mapping[str, Any]) -> str:
    """Return what :func:`describe` found as text."""
    names = ", ".join(found["class_names"][:MOST_NAMED])
    more = ", ..." if found["num_classes"] > MOST_NAMED else ""
    sizes = " / ".join(map(str, found["view_sizes"]))
    fusion = "fusion trained" if found["fusion_trained"] else "fusion not trained"
    parts = ", ".join(f"{name} {number:,}" for name, number in found["parameters"].items())
    rows = {
        "file": f"{found['file_size']:,} bytes, checkpoint format {found['format']}",
        "digest": found["digest"],
        "dataset": f"{found['dataset']}: {found['num_train']} training photos, {found['num_val']} for validation",
        "classes": f"{found['num_classes']}: {names}{more}",
        "network": f"{found['backbone']}, views of {sizes} px",
        "trained": f"{found['trained_scales']} of {len(found['view_sizes'])} scales, {fusion}",
        "parameters": f"{sum(found['parameters'].values()):,}: {parts}",
        "step": str(found["step"]) + (f", {found['position']}" if found["position"] else ""),
    }
    if found["val_top1"]:
        answers = "  ".join(f"{name} {100 * value:.1f}" for name, value in found["val_top1"].items())
        rows["validation"] = f"top-1 % {answers}"
    lines = [found["path"], *(f"  {name:<13} {value}" for name, value in rows.items())]
    lines += [line for start in found["provenance"] for line in _start_lines(start)]
    return "\n".join(lines)


def _start_lines(start: Mapping[str, Any]) -> list[str]:
    """Return a start of the run in words; it is for reading alone, so whatever stands in it is shown."""
    rows = {f"from step {start.get('step')}": start.get("command")}
    versions = start.get("versions")
    if isinstance(versions, Mapping):
        rows["versions"] = ", ".join(f"{name} {version}" for name, version in versions.items())
    commit = start.get("commit")
    if isinstance(commit, Mapping):
        rows["commit"] = f"{commit.get('sha')}{', with changes' if commit.get('changed') else ''}"
    rows["device"] = f"{start.get('device')}, {start.get('threads')} threads"
    return [f"  {name:<13} {value}" for name, value in rows.items()]
