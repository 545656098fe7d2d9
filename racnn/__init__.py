"""RA-CNN: fine-grained image recognition that looks, decides where to look closer, zooms, and looks again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["RACNN", "RACNNOutput", "__version__", "load_trained"]

if TYPE_CHECKING:
    from racnn.engine.predictor import load_trained
    from racnn.models.racnn.model import RACNN, RACNNOutput


def __getattr__(name: str) -> Any:
    """Resolve what needs torch lazily, so that importing the package (and the command line's help) needs no torch."""
    if name in ("RACNN", "RACNNOutput"):
        from racnn.models.racnn import model as module

        return getattr(module, name)
    if name == "load_trained":
        from racnn.engine.predictor import load_trained

        return load_trained
    raise AttributeError(f"module 'racnn' has no attribute '{name}'")
