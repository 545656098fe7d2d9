"""From a configuration to batches.

A sample is a function of (seed, epoch, position) alone: the batch sampler hands every worker the epoch together with
the position, and each sample draws its random changes from a seed made of the three. So the pixels do not depend on
the number of workers, and a run that is taken up again in the middle of an epoch sees what it would have seen.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from racnn.data.build import DATASETS, Data, build_data
    from racnn.data.dataset import PhotoDataset, mix_seed
    from racnn.data.image_io import read_photo
    from racnn.data.loader import eval_loader, train_loader

__all__ = [
    "DATASETS",
    "Data",
    "PhotoDataset",
    "build_data",
    "eval_loader",
    "mix_seed",
    "read_photo",
    "train_loader",
]
_PLACES = {
    "build": ("DATASETS", "Data", "build_data"),
    "dataset": ("PhotoDataset", "mix_seed"),
    "image_io": ("read_photo",),
    "loader": ("eval_loader", "train_loader"),
}


def __getattr__(name: str) -> Any:
    """Resolve names when they are asked for, so that photos can be read without torch."""
    for module, names in _PLACES.items():
        if name in names:
            return getattr(importlib.import_module(f"racnn.data.{module}"), name)
    raise AttributeError(f"module 'racnn.data' has no attribute '{name}'")
