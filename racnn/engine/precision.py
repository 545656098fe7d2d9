"""Where and in which precision a network runs."""

from __future__ import annotations

import torch

from racnn.config import Config
from racnn.errors import ConfigError
from racnn.models import RACNN
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


def prepare(model: RACNN, config: Config, device: torch.device) -> None:
    """Move a network to its device, with the memory layout and precision that the configuration asks for."""
    model.to(device)
    if config.run.channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    model.compute_dtype = torch.bfloat16 if _use_bf16(config.run.precision, device) else None
    for backbone in model.backbones:
        assert isinstance(backbone, Backbone)
        if config.run.activation_checkpointing:
            backbone.save_memory()
        if config.run.compile:
            backbone.compile(fullgraph=True)  # what cannot be compiled is an error, not slow
    if config.run.compile:
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
