"""Compiles kernel files of csrc/ with g++ against the emulated CUDA of this folder, and loads them.

    library = kernels.emulate(folder, "group_stats/group_stats_cuda.cu")
    kernels.launch(library, "diva_group_stats_cuda", values, len(values), offsets, ...)

The launchers are called as the torch glue calls them, with addresses of CPU tensors. `faults` replaces text in a copy
of the sources, to show that the tests would notice.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).resolve().parent
CSRC = HERE.parent.parent / "csrc"


def emulate(folder: Path, *sources: str, faults: Mapping[str, str] | None = None) -> ctypes.CDLL:
    """The kernels of `sources` (paths in csrc/) as a shared library built in `folder`."""
    csrc = CSRC
    if faults:
        csrc = folder / "csrc"
        shutil.copytree(CSRC, csrc)
        for source in sources:
            _plant(csrc / source, faults)
    library = folder / "kernels.so"
    compiler = os.environ.get("CXX", "g++")
    command = [compiler, "-std=c++17", "-O1", "-g", "-ffp-contract=off", "-fPIC", "-shared", "-pthread"]
    command += ["-Wno-unknown-pragmas", f"-I{HERE / 'include'}", f"-I{csrc}", "-include", "cuda_runtime.h"]
    command += ["-D__CUDA_ARCH_LIST__=0", "-x", "c++", "-", "-o", str(library)]
    # One unit: the headers, most of the work, are read once.
    unit = "".join(f'#include "{source}"\n' for source in (*sources, "common/device_cuda.cu"))
    subprocess.run(command, input=unit, text=True, check=True)
    return ctypes.CDLL(str(library))


def _plant(source: Path, faults: Mapping[str, str]) -> None:
    """Into the source or one of the kernel headers beside it, wherever the right text stands once."""
    files = [source, *sorted(source.parent.glob("*.cuh"))]
    for right, wrong in faults.items():
        counts = [file.read_text().count(right) for file in files]
        assert sum(counts) == 1, f"{right!r} stands {sum(counts)} times in {source} and the headers beside it"
        file = files[counts.index(1)]
        file.write_text(file.read_text().replace(right, wrong))


def address(tensor: torch.Tensor) -> ctypes.c_void_p:
    assert tensor.is_contiguous()
    return ctypes.c_void_p(tensor.data_ptr())


def launch(library: ctypes.CDLL, name: str, *arguments: Any) -> None:
    """Calls the launcher `name` on the default stream: tensors become addresses, ints 64-bit."""
    error = library[name](*[_argument(argument) for argument in arguments], None)
    if error:
        library.diva_cuda_error_string.restype = ctypes.c_char_p
        raise RuntimeError(library.diva_cuda_error_string(error).decode())


def _argument(argument: Any) -> Any:
    if isinstance(argument, torch.Tensor):
        return address(argument)
    return ctypes.c_int64(argument) if isinstance(argument, int) else argument
