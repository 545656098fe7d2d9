"""RA-CNN: fine-grained image recognition that looks, decides where to look closer, zooms, and looks again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["RACNN", "Prediction", "Predictor", "RACNNOutput", "__version__", "load", "load_trained"]

if TYPE_CHECKING:
    from racnn.engine.predictor import Predictor
    from racnn.models.racnn.model import RACNN, RACNNOutput
    from racnn.portable.answers import Prediction


def load(path: Path | str, device: Any = "cpu", *, levels: bool = False) -> Any:
    """Return a trained network, ready to answer: :class:`Predictor`, or of an .onnx file, without torch, ``PortableNetwork``.

    Args:
        path: ``best.pt`` or ``last.pt`` of a run, a .safetensors file of ``racnn export-weights``, or an .onnx file of
            ``racnn export``.
        device: Where to put the network; of an .onnx file the CPU alone.
        levels: Answer also at the level that is sure, as ``racnn evaluate --levels`` has chosen it.

    Raises:
        CheckpointError: The file is missing or damaged, or its parts do not fit each other.
        ConfigError: An .onnx file and another device than the CPU, or without onnxruntime.
        DataError: There is no such choice, or it is damaged or of other weights.
    """
    if str(path).endswith(".onnx"):
        from racnn.portable.network import open_onnx

        return open_onnx(Path(path), device=str(device), levels=levels)
    from racnn.engine.predictor import load as load_checkpoint

    return load_checkpoint(path, device, levels=levels)


load_trained = load  # as earlier versions called it


def __getattr__(name: str) -> Any:
    """Resolve what needs torch lazily, so that importing the package (and the command line's help) needs no torch."""
    if name in ("RACNN", "RACNNOutput"):
        from racnn.models.racnn import model as module
    elif name == "Prediction":
        from racnn.portable import answers as module  # type: ignore[no-redef]
    elif name == "Predictor":
        from racnn.engine import predictor as module  # type: ignore[no-redef]
    else:
        raise AttributeError(f"module 'racnn' has no attribute '{name}'")
    return getattr(module, name)
