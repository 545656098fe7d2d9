"""RA-CNN: fine-grained image recognition that looks, decides where to look closer, zooms, and looks again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["RACNN", "Prediction", "Predictor", "RACNNOutput", "__version__", "load", "load_trained"]

if TYPE_CHECKING:
    from racnn.engine.predictor import Prediction, Predictor, load
    from racnn.models.racnn.model import RACNN, RACNNOutput

    load_trained = load


def __getattr__(name: str) -> Any:
    """Resolve what needs torch lazily, so that importing the package (and the command line's help) needs no torch."""
    if name in ("RACNN", "RACNNOutput"):
        from racnn.models.racnn import model as module
    elif name in (
        "Prediction",
        "Predictor",
        "load",
        "load_trained",
    ):  # the last as earlier versions called it
        from racnn.engine import predictor as module  # type: ignore[no-redef]

        name = "load" if name == "load_trained" else name
    else:
        raise AttributeError(f"module 'racnn' has no attribute '{name}'")
    return getattr(module, name)
