"""Let torchvision be imported beside a PyTorch that its compiled operators were not built for.

The torchvision wheel that package registries carry for Linux is compiled against a CUDA build of PyTorch. Beside a
CPU-only PyTorch its compiled library does not load, and ``import torchvision`` then dies with "operator
torchvision::nms does not exist", although models, data sets and transforms need nothing of that library.
"""

import ctypes
import importlib.util
import sys
from pathlib import Path

import torch

_declared = None  # the library that holds our declarations: they live as long as this object


def declare_missing_operators():
    """Declare torchvision's two operators that its Python code expects, if its compiled library cannot.

    Does nothing where torchvision is absent, already imported, or sound. Otherwise the names ``torchvision::nms``
    and ``torchvision::qnms`` are declared without an implementation: ``import torchvision`` works, and only a call
    of non-maximum suppression itself fails, with PyTorch's message that the operator has no kernel.

    Returns:
        Whether the operators were declared here.
    """
    global _declared
    if "torchvision" in sys.modules:
        return False
    package = importlib.util.find_spec("torchvision")
    if (
        package is None
        or package.origin is None
        or hasattr(torch.ops.torchvision, "nms")
        or _compiled_library_loads(Path(package.origin).parent)
    ):
        return False
    _declared = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        _declared.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return True


def _compiled_library_loads(folder):
    for library in [*folder.glob("_C*.so"), *folder.glob("_C*.pyd")]:
        try:
            ctypes.CDLL(str(library))
            return True
        except OSError:
            continue
    return False
