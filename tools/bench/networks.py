"""The network as it is trained and used, the same one plainly, and a batch for both."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from racnn.config import Config, parse_config
from racnn.engine.device import prepare
from racnn.models import RACNN, build_model
from racnn.models.racnn.schedules import recipe_schedule

NUM_CLASSES = 200


def default_config(backbone: str, side: int) -> Config:
    """Return the default configuration: a photo of side x side px, one view of all of it and two of half its side."""
    view_sizes = [side, side // 2, side // 2]
    values: dict[str, Any] = {
        "data": {"source_size": side},
        "model": {"backbone": backbone, "view_sizes": view_sizes},
        "schedule": recipe_schedule(view_sizes),
    }
    return parse_config(values, origin="benchmark")


def ours(config: Config, device: torch.device) -> RACNN:
    """Return the network with random weights, in the precision and memory layout that the configuration asks for."""
    torch.manual_seed(0)
    model = build_model(config.model, num_classes=NUM_CLASSES)
    prepare(model, config, device)
    return model


def plain(config: Config, device: torch.device) -> RACNN:
    """Return the same network in float32 and channels first; on CUDA with TF32 convolutions, which is torch's default."""
    run = config.run.model_copy(update={"precision": "fp32", "channels_last": False})
    return ours(config.model_copy(update={"run": run}), device)


def photos(number: int, side: int, device: torch.device) -> dict[str, Tensor]:
    """Return a batch of noise, as a loader gives it but the photos already on the device."""
    generator = torch.Generator().manual_seed(0)
    batch = {
        "image": torch.randint(0, 256, (number, 3, side, side), generator=generator, dtype=torch.uint8),
        "label": torch.randint(0, NUM_CLASSES, (number,), generator=generator),
        "box": torch.full((number, 4), float("nan")),
        "parts": torch.full((number, 0, 2), float("nan")),
        "index": torch.arange(number),
        "share": torch.full((number,), 1.0 / number, dtype=torch.float64),
    }
    return {key: value if key == "share" else value.to(device) for key, value in batch.items()}
