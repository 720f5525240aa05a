"""Makes an installed torchvision importable beside a CPU-only torch.

The torchvision wheel on PyPI is built for CUDA: beside a CPU-only torch its C library cannot load, its import fails at two
`register_fake` lines, and with it every transformers image processor. Declaring the two schemas those lines name is enough:
transforms are pure torch, and `torchvision.ops.nms` still raises when called.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import torch

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_declared: list[torch.library.Library] = []  # a Library takes its schemas with it when it is collected


def make_torchvision_importable() -> None:
    """Call before importing image processors. Does nothing where torchvision is absent, imported, or fits this torch."""
    if torch.version.cuda is not None or torch.version.hip is not None:
        return
    if _declared or "torchvision" in sys.modules:
        return
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None or _has_loadable_library(Path(spec.origin).parent):
        return
    library = torch.library.Library("torchvision", "DEF")
    for schema in _SCHEMAS:
        library.define(schema)
    _declared.append(library)


def _has_loadable_library(package: Path) -> bool:
    for path in sorted(package.glob("_C*.so")):
        try:
            torch.ops.load_library(str(path))
        except OSError:
            return False
        return True
    return False
