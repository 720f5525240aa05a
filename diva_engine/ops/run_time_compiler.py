"""Compiles kernels of csrc/ at run time with CUDA's NVRTC, loads and launches them; NVRTC and the driver through CuPy.

CuPy's own `RawModule` is not used: it adds -ftz=true, which changes numbers, and its cache does not notice when a
header changes.
"""

from __future__ import annotations

import ctypes
import functools
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

PACKAGE = Path(__file__).resolve().parent.parent
SHIPPED = PACKAGE / "_csrc"  # where a wheel puts csrc/; in the source tree it lies beside the package
SOURCES = SHIPPED if SHIPPED.is_dir() else PACKAGE.parent / "csrc"

log = logging.getLogger("diva_engine")


@dataclass(frozen=True)
class Kernel:
    """`diva::<name>` of csrc/<op>/<op>_cuda.cu."""

    op: str
    name: str
    threads: int  # of a block
    is_cooperative: bool = False  # its blocks wait for each other, so all must fit on the device at once


def compile_kernel(kernel: Kernel, architecture: int) -> tuple[bytes, str]:
    """The kernel for e.g. architecture 90, as a loadable cubin, and its name in there. Needs no GPU."""
    from cupy.cuda import nvrtc

    source = SOURCES / kernel.op / f"{kernel.op}_cuda.cu"
    options = ("-std=c++17", f"-arch=sm_{architecture}", *(f"-I{folder}" for folder in (SOURCES, *_cuda_headers())))
    expression = f"diva::{kernel.name}"
    program = nvrtc.createProgram(source.read_text(), source.name, (), ())
    try:
        nvrtc.addNameExpression(program, expression)
        nvrtc.compileProgram(program, options)
        return nvrtc.getCUBIN(program), nvrtc.getLoweredName(program, expression)
    except nvrtc.NVRTCError as error:
        words = nvrtc.getProgramLog(program)
        raise RuntimeError(f"{kernel.op}: NVRTC could not compile it for sm_{architecture}: {words}") from error
    finally:
        nvrtc.destroyProgram(program)


def _cuda_headers() -> list[str]:
    from cuda.pathfinder import find_nvidia_header_directory

    found = [find_nvidia_header_directory(name) for name in ("cudart", "cccl")]
    if None in found:
        raise RuntimeError("CUDA's headers were not found; run `pip install diva-engine[cuda-jit]`")
    return [folder for folder in found if folder is not None]


@functools.cache
def _function(kernel: Kernel, device: int) -> int:
    """The driver's handle of the kernel, compiled and loaded on the first call."""
    from cupy.cuda import driver

    major, minor = torch.cuda.get_device_capability(device)
    architecture = 10 * major + minor
    log.warning("built without nvcc: compiling %s for sm_%d at run time (cuda-jit)", kernel.name, architecture)
    cubin, name = compile_kernel(kernel, architecture)
    handle: int = driver.moduleGetFunction(driver.moduleLoadData(cubin), name)
    return handle


def launch(kernel: Kernel, blocks: int, arguments: Sequence[Any], device: torch.device) -> None:
    """Launches on torch's current stream. Arguments are ctypes values, in the order of the kernel's parameters.

    A cooperative grid is cut to the blocks that fit on the device.
    """
    from cupy.cuda import driver, runtime

    index = device.index
    with torch.cuda.device(device):
        runtime.setDevice(index)  # the driver's calls want a current context, which a fresh thread has not
        function = _function(kernel, index)
        addresses = (ctypes.c_void_p * len(arguments))(*(ctypes.addressof(argument) for argument in arguments))
        stream = torch.cuda.current_stream(device).cuda_stream
        if kernel.is_cooperative:
            blocks = min(blocks, _most_blocks(kernel, function, index))
            driver.launchCooperativeKernel(
                function, blocks, 1, 1, kernel.threads, 1, 1, 0, stream, ctypes.addressof(addresses)
            )
        else:
            driver.launchKernel(function, blocks, 1, 1, kernel.threads, 1, 1, 0, stream, ctypes.addressof(addresses), 0)


@functools.cache
def _most_blocks(kernel: Kernel, function: int, device: int) -> int:
    from cupy.cuda import driver

    each: int = driver.occupancyMaxActiveBlocksPerMultiprocessor(function, kernel.threads, 0)
    return each * torch.cuda.get_device_properties(device).multi_processor_count
