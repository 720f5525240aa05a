"""CUDA for a library that was built without nvcc, its kernels compiled at run time: the extra cuda-jit.

Such a library has all of every op but the kernels: checks, allocation and launchers, compiled as plain C++. A launcher
names its kernel and hands the launch to the functions of this file (csrc/common/run_time.h says what they must do).
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

import diva_engine
from diva_engine.ops import run_time_compiler
from diva_engine.ops.run_time_compiler import Kernel

INT64, POINTER, STRING, DIM3 = ctypes.c_int64, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_uint * 3
FAILED = -1


class Launch(ctypes.Structure):
    """DivaLaunch."""

    _fields_ = (
        ("kernel", STRING),
        ("file", STRING),
        ("grid", DIM3),
        ("block", DIM3),
        ("shared_bytes", INT64),
        ("is_cooperative", INT64),
        ("stream", POINTER),
        ("arguments", POINTER),
        ("sizes", ctypes.POINTER(INT64)),
        ("num_arguments", INT64),
    )


def is_wanted() -> bool:
    """Whether torch has CUDA, this library has not, and CuPy is installed, which is what asks for this way."""
    if torch.version.cuda is None or find_spec("cupy") is None:
        return False
    return diva_engine.build_info()["cuda"] is None


def install(library: ctypes.CDLL) -> ctypes.Structure:
    """Has the library's launchers call this file. They may as long as what is returned lives."""
    functions = RunTime(*(kind(_told(library, call)) for (_, kind), call in zip(RunTime._fields_, CALLS, strict=True)))
    library.diva_set_run_time(ctypes.byref(functions))
    return functions


def _told(library: ctypes.CDLL, call: Callable[..., None]) -> Callable[..., int]:
    """The call for C++, which knows no exceptions of Python: their words go to the library, an error is returned."""

    def guarded(*arguments: Any) -> int:
        try:
            _enter_device()
            call(*arguments)
        except BaseException as error:  # KeyboardInterrupt too: a launch must not be dropped in silence
            library.diva_set_run_time_error(f"{type(error).__name__}: {error}".encode())
            return FAILED
        return 0

    return guarded


@functools.cache
def _kernel(name: bytes, file: bytes) -> Kernel:
    return Kernel(Path(file.decode()).stem.removesuffix("_cuda"), name.decode())


def _enter_device() -> None:
    """Torch's current device becomes the driver's too, which a fresh thread has not."""
    from cupy.cuda import runtime

    runtime.setDevice(torch.cuda.current_device())


def launch(pointer: ctypes._Pointer[Launch]) -> None:
    from cupy.cuda import driver

    what = pointer.contents
    function = run_time_compiler.function(_kernel(what.kernel, what.file), torch.cuda.current_device())
    if what.shared_bytes:
        driver.funcSetAttribute(function, driver.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, what.shared_bytes)
    words = (function, *what.grid, *what.block, what.shared_bytes, what.stream or 0, what.arguments)
    if what.is_cooperative:
        driver.launchCooperativeKernel(*words)
    else:
        driver.launchKernel(*words, 0)


def most_blocks(name: bytes, file: bytes, threads: int, blocks: ctypes._Pointer[ctypes.c_int64]) -> None:
    blocks[0] = run_time_compiler.most_blocks(_kernel(name, file), threads, torch.cuda.current_device())


def processors(count: ctypes._Pointer[ctypes.c_int64]) -> None:
    count[0] = run_time_compiler.num_processors(torch.cuda.current_device())


def zero(memory: int, num_bytes: int, stream: int | None) -> None:
    from cupy.cuda import runtime

    runtime.memsetAsync(memory, 0, num_bytes, stream or 0)


def is_capturing(stream: int | None, answer: ctypes._Pointer[ctypes.c_int64]) -> None:
    from cupy.cuda import runtime

    answer[0] = runtime.streamIsCapturing(stream or 0)


def copy_to_host(host: int, device: int, num_bytes: int, stream: int | None) -> None:
    from cupy.cuda import runtime

    runtime.memcpyAsync(host, device, num_bytes, runtime.memcpyDeviceToHost, stream or 0)
    runtime.streamSynchronize(stream or 0)


class RunTime(ctypes.Structure):
    """DivaRunTime."""

    _fields_ = (
        ("launch", ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(Launch))),
        ("most_blocks", ctypes.CFUNCTYPE(ctypes.c_int, STRING, STRING, INT64, ctypes.POINTER(INT64))),
        ("processors", ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(INT64))),
        ("zero", ctypes.CFUNCTYPE(ctypes.c_int, POINTER, INT64, POINTER)),
        ("is_capturing", ctypes.CFUNCTYPE(ctypes.c_int, POINTER, ctypes.POINTER(INT64))),
        ("copy_to_host", ctypes.CFUNCTYPE(ctypes.c_int, POINTER, POINTER, INT64, POINTER)),
    )


CALLS: tuple[Callable[..., None], ...] = (launch, most_blocks, processors, zero, is_capturing, copy_to_host)
