"""Import torchvision beside a torch whose build lacks the libraries of torchvision's compiled operators."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

_KEPT_LIBRARIES: list[Any] = []  # a Library unregisters its schemas when it is collected


def import_torchvision() -> ModuleType:
    """Import and return torchvision, also where its compiled operators cannot be loaded.

    A torchvision built for CUDA stops at import beside a CPU-only torch, because its Python code registers
    shape functions for ``nms`` (and ``qnms`` from 0.28) that its compiled library never declared. Only on
    exactly that error are the two schemas declared here and the import tried again: a healthy installation
    is never touched. Models and transforms then work; the compiled box operators do not, and are not used.

    Raises:
        RuntimeError: torchvision fails to import for another reason.
    """
    try:
        import torchvision
    except RuntimeError as error:
        if "operator torchvision::nms does not exist" not in str(error):
            raise
        from torch import library

        for name in [m for m in sys.modules if m == "torchvision" or m.startswith("torchvision.")]:
            del sys.modules[name]
        fragment = library.Library("torchvision", "FRAGMENT")
        for operator in ("nms", "qnms"):
            fragment.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _KEPT_LIBRARIES.append(fragment)
        import torchvision
    return torchvision
