"""Compiles kernels of csrc/ with CUDA's NVRTC and loads them; NVRTC and the driver through CuPy.

CuPy's own `RawModule` is not used: it adds -ftz=true, which changes numbers, and its cache does not notice when a
header changes.
"""

from __future__ import annotations

import functools
import logging
from dataclasses import dataclass
from pathlib import Path

import torch

PACKAGE = Path(__file__).resolve().parent.parent
SHIPPED = PACKAGE / "_csrc"  # where a wheel puts csrc/; in the source tree it lies beside the package
SOURCES = SHIPPED if SHIPPED.is_dir() else PACKAGE.parent / "csrc"

log = logging.getLogger("diva_engine")


@dataclass(frozen=True)
class Kernel:
    """A kernel of csrc/<op>/<op>_cuda.cu."""

    op: str
    name: str  # as C++ writes it: diva::gram_kernel<float>


def compile_kernel(kernel: Kernel, architecture: int) -> tuple[bytes, str]:
    """The kernel for e.g. architecture 90, as a loadable cubin, and its name in there. Needs no GPU."""
    from cupy.cuda import nvrtc

    source = SOURCES / kernel.op / f"{kernel.op}_cuda.cu"
    options = ("-std=c++17", f"-arch=sm_{architecture}", *(f"-I{folder}" for folder in (SOURCES, *_cuda_headers())))
    program = nvrtc.createProgram(source.read_text(), source.name, (), ())
    try:
        nvrtc.addNameExpression(program, kernel.name)
        nvrtc.compileProgram(program, options)
        return nvrtc.getCUBIN(program), nvrtc.getLoweredName(program, kernel.name)
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
def function(kernel: Kernel, device: int) -> int:
    """The driver's handle of the kernel, compiled and loaded on the first call."""
    from cupy.cuda import driver

    major, minor = torch.cuda.get_device_capability(device)
    architecture = 10 * major + minor
    log.warning("built without nvcc: compiling %s for sm_%d at run time (cuda-jit)", kernel.name, architecture)
    cubin, name = compile_kernel(kernel, architecture)
    handle: int = driver.moduleGetFunction(driver.moduleLoadData(cubin), name)
    return handle


@functools.cache
def most_blocks(kernel: Kernel, threads: int, device: int) -> int:
    """Blocks of so many threads that run on the device at once."""
    from cupy.cuda import driver

    each: int = driver.occupancyMaxActiveBlocksPerMultiprocessor(function(kernel, device), threads, 0)
    return each * num_processors(device)


def num_processors(device: int) -> int:
    count: int = torch.cuda.get_device_properties(device).multi_processor_count
    return count
