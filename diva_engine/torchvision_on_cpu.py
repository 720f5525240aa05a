"""Let the public torchvision wheel be imported beside a CPU-only torch.

The public wheels of torchvision are CUDA builds. Their C library cannot load beside a CPU torch, and torchvision then
fails at import ("operator torchvision::nms does not exist"), which takes the image processors of transformers down with
it. Everything they need of torchvision is written in Python: it is enough to declare the two operators that torchvision
names without a guard. `torchvision.ops.nms` itself still raises its own "Couldn't load custom C++ ops".

Nothing happens where torchvision is absent, works, or stands beside a CUDA or ROCm torch.

`import diva_engine` does this for its own process. vLLM starts further ones, so an environment with vLLM on the CPU
needs it in all of them, once:

    python -c 'import diva_engine; diva_engine.torchvision_on_cpu.install_for_environment()'
"""

from __future__ import annotations

import sys
import sysconfig
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

_UNGUARDED_OPERATORS = ("nms", "qnms")
_START_FILE = "diva_torchvision_on_cpu.pth"  # Python runs its lines whenever it starts
_declared: list[Any] = []  # a torch.library.Library undoes its definitions when it is collected


def install() -> None:
    """Put the finder on `sys.meta_path`, once. Imports nothing; the work is done when torchvision is imported."""
    if "torchvision" in sys.modules or any(isinstance(finder, _TorchvisionFinder) for finder in sys.meta_path):
        return
    sys.meta_path.insert(0, _TorchvisionFinder())


class _TorchvisionFinder:
    """Finds torchvision as usual, and has the operators declared just before its first line runs."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != "torchvision":
            return None
        spec = self._find_as_usual(name, path, target)
        if spec is not None and spec.loader is not None and spec.origin is not None:
            _declare_before_execution(spec)
        return spec

    def _find_as_usual(self, name: str, path: Sequence[str] | None, target: ModuleType | None) -> ModuleSpec | None:
        for finder in list(sys.meta_path):
            if finder is self or not hasattr(finder, "find_spec"):
                continue
            spec = finder.find_spec(name, path, target)
            if spec is not None:
                return spec
        return None


def _declare_before_execution(spec: ModuleSpec) -> None:
    loader: Any = spec.loader
    execute = loader.exec_module

    def exec_module(module: ModuleType) -> None:
        if not _library_loads(Path(str(spec.origin)).parent):
            _declare_operators()
        execute(module)

    loader.exec_module = exec_module


def _library_loads(package: Path) -> bool:
    """Whether torchvision's C library works beside this torch. With a GPU torch its own error message must stand."""
    import torch

    if torch.version.cuda is not None or torch.version.hip is not None:
        return True
    for library in sorted([*package.glob("_C*.so"), *package.glob("_C*.pyd")]):
        try:
            torch.ops.load_library(str(library))
        except OSError:
            return False
        return True
    return False


def _declare_operators() -> None:
    import torch

    library = torch.library.Library("torchvision", "FRAGMENT")
    for operator in _UNGUARDED_OPERATORS:
        if not hasattr(torch.ops.torchvision, operator):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _declared.append(library)


def install_for_environment() -> Path:
    """Has every Python of this environment do as `install`, by a file in its site-packages; returns the file."""
    file = Path(sysconfig.get_path("purelib")) / _START_FILE
    file.write_text("import diva_engine\n", encoding="utf-8")
    return file
