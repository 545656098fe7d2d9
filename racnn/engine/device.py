"""Where and in which precision a network runs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from racnn.config import Config
from racnn.errors import ConfigError
from racnn.models.backbone import Backbone

COMPILED_VARIANTS = 256


def pick_device(name: str) -> torch.device:
    """Return the device that ``--device`` names: auto, cpu, cuda or cuda:N.

    Raises:
        ConfigError: It names something else, or a GPU that this machine lacks.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"--device: expected auto, cpu, cuda or cuda:N, got '{name}'") from None
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"--device: expected auto, cpu, cuda or cuda:N, got '{name}'")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"--device {name}: this machine has {torch.cuda.device_count()} CUDA devices")
    return device


@contextmanager
def determinism(wanted: bool, device: torch.device) -> Iterator[None]:
    """Use only deterministic algorithms inside, if wanted; on a GPU the fastest that cuDNN finds, if not.

    A CPU has no others for what is done here, so that the same seed gives the same bits with and without. On a GPU cuDNN
    and cuBLAS are held to theirs, at some cost in time; what has no deterministic version goes on with torch's warning:
    the backward pass of max-pooling, which adds nothing up where windows do not overlap, as in VGG.
    """
    if not wanted:
        before_search, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, device.type == "cuda"
        try:
            yield
        finally:
            torch.backends.cudnn.benchmark = before_search
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when the GPU is first used
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.backends.cudnn.benchmark,
        torch.utils.deterministic.fill_uninitialized_memory,  # type: ignore[attr-defined]
    )
    torch.use_deterministic_algorithms(True, warn_only=device.type == "cuda")
    torch.backends.cudnn.benchmark = False
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.backends.cudnn.benchmark = before[2]
        torch.utils.deterministic.fill_uninitialized_memory = before[3]  # type: ignore[attr-defined]


def prepare(model: Any, config: Config, device: torch.device, *, training: bool = True) -> None:
    """Move a network, see :class:`racnn.models.family.Network`, to its device, with the memory layout and precision that the configuration asks for.

    For training also compile it, or have it compute activations again, if asked.
    """
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # or the loaders would hold memory on the first one
    model.to(device)
    if config.run.channels_last:
        model.to(memory_format=torch.channels_last)
    model.compute_dtype = torch.bfloat16 if _use_bf16(config.run.precision, device) else None
    for backbone in model.backbones if training else ():
        assert isinstance(backbone, Backbone)
        if config.run.activation_checkpointing:
            backbone.save_memory()
        if config.run.compile:
            # what cannot be compiled is an error, not slow; one graph a shape, for there are few: of full and last batches,
            # in training and validation
            backbone.compile(fullgraph=True, dynamic=False)
    if training and config.run.compile:
        # one for each size of view, batch and set of frozen layers; beyond it torch would go on uncompiled
        torch._dynamo.config.recompile_limit = COMPILED_VARIANTS
        torch._dynamo.config.fail_on_recompile_limit_hit = True


def _use_bf16(precision: str, device: torch.device) -> bool:
    """Return whether the backbones run in bfloat16; 'auto' does so where the hardware multiplies it natively."""
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    native = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return device.type == "cpu" and native is not None and bool(native())
