"""Loads the compiled ops into torch. Importing this module is what makes `torch.ops.diva_engine.*` exist."""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch

from diva_engine.ops import cuda_jit

LIBRARY = Path(__file__).resolve().parent.parent / "_ops.abi3.so"


def load_library() -> ctypes.CDLL:
    """Register the compiled ops with torch; an ImportError with the command to run where they are not built."""
    if not LIBRARY.is_file():
        raise ImportError(
            f"diva_engine's compiled ops are not built: there is no {LIBRARY}. "
            "Run `pip install .` in the source tree, or `python setup.py build_ext --inplace` to work in it."
        )
    torch.ops.load_library(str(LIBRARY))
    return ctypes.CDLL(str(LIBRARY))


def refuse_gradient(op: str, **tensors: torch.Tensor) -> None:
    """Rewards and levels are data: a caller who expects a gradient through them is told, not given zeros."""
    if not torch.is_grad_enabled():
        return
    for name, tensor in tensors.items():
        if tensor.requires_grad:
            raise ValueError(f"{op}: {name} requires grad, but no gradient flows through this op; pass {name}.detach()")


LOADED = load_library()
# Held here because the library calls it.
COMPILED_AT_RUN_TIME = cuda_jit.install(LOADED) if cuda_jit.is_wanted() else None
