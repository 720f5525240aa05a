"""The kernel files are also what CUDA's run-time compiler reads, without a driver: the way of the cuda-jit extra."""

from __future__ import annotations

import ctypes
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest

from bench import registers
from diva_engine.ops import cuda_jit, run_time_compiler
from diva_engine.ops.run_time_compiler import Kernel
from python_tests.emulation import launchers

pytestmark = pytest.mark.slow


def nvrtc() -> ctypes.CDLL:
    """The library of the package nvidia-cuda-nvrtc, or of an installed toolkit."""
    spec = find_spec("nvidia")
    folders = [Path(folder) for folder in spec.submodule_search_locations] if spec else []
    found = [path for folder in folders for path in sorted(folder.glob("*/lib/libnvrtc.so.*"))]
    if not found:
        pytest.skip("nvidia-cuda-nvrtc is not installed: kernels cannot be compiled at run time here")
    for builtins in found[0].parent.glob("libnvrtc-builtins.so.*"):
        ctypes.CDLL(str(builtins))
    return ctypes.CDLL(str(found[0]))


def cuda_headers() -> list[Path]:
    nvcc = shutil.which("nvcc", path="/usr/local/cuda/bin") or shutil.which("nvcc")
    candidates = [Path(nvcc).resolve().parent.parent / "include"] if nvcc else []
    candidates += sorted(Path("/usr/local").glob("cuda-*/include"))
    headers = next((folder for folder in candidates if (folder / "cooperative_groups.h").is_file()), None)
    if headers is None:
        pytest.skip("no CUDA headers were found")
    return [headers, headers / "cccl"]


@dataclass(frozen=True)
class Compiled:
    error: str  # the compiler's words; empty where it worked
    ptx: str
    lowered: dict[str, str]  # names as C++ writes them -> as they stand in the PTX


def compile_at_run_time(source: Path, architecture: int, names: Sequence[str] = ()) -> Compiled:
    library, program = nvrtc(), ctypes.c_void_p()
    text = source.read_bytes()
    assert library.nvrtcCreateProgram(ctypes.byref(program), text, source.name.encode(), 0, None, None) == 0
    for name in names:
        assert library.nvrtcAddNameExpression(program, name.encode()) == 0
    flags = ["-std=c++17", f"-arch=sm_{architecture}", *(f"-I{folder}" for folder in (registers.CSRC, *cuda_headers()))]
    encoded = (ctypes.c_char_p * len(flags))(*(flag.encode() for flag in flags))
    failed = library.nvrtcCompileProgram(program, len(flags), encoded)
    words = text_of(library, program, "ProgramLog")
    lowered = {name: ctypes.c_char_p() for name in names}
    for name, place in lowered.items():
        library.nvrtcGetLoweredName(program, name.encode(), ctypes.byref(place))
    in_ptx = {name: (place.value or b"").decode() for name, place in lowered.items()}
    found = Compiled(words if failed else "", "" if failed else text_of(library, program, "PTX"), in_ptx)
    library.nvrtcDestroyProgram(ctypes.byref(program))
    return found


def text_of(library: ctypes.CDLL, program: ctypes.c_void_p, what: str) -> str:
    size = ctypes.c_size_t()
    library[f"nvrtcGet{what}Size"](program, ctypes.byref(size))
    text = ctypes.create_string_buffer(size.value)
    library[f"nvrtcGet{what}"](program, text)
    return text.value.decode()


KERNEL_FILES = [path for path in registers.kernel_files() if path.parent.name != "common"]


@pytest.mark.parametrize("source", KERNEL_FILES, ids=lambda path: path.parent.name)
def test_compiles_at_run_time(source):
    assert compile_at_run_time(source, 90).error == ""


def test_a_fault_is_told(tmp_path):
    broken = tmp_path / "broken.cu"
    broken.write_text("__global__ void kernel() { unknown(); }")
    assert "unknown" in compile_at_run_time(broken, 90).error


@pytest.fixture(scope="module")
def told_sizes(tmp_path_factory) -> dict[str, list[int]]:
    """Kernel -> sizes of the arguments that its launcher, compiled without nvcc, hands over."""
    library, sizes = launchers.build(tmp_path_factory.mktemp("launchers")), {}

    def launch(pointer):
        what = pointer.contents
        sizes[what.kernel.decode()] = what.sizes[: what.num_arguments]
        return 0

    def several(*arguments):  # blocks of a grid, processors of a device
        arguments[-1][0] = 4
        return 0

    def nothing(*arguments):
        return 0

    calls = (launch, several, several, nothing, nothing, nothing)
    functions = cuda_jit.RunTime(
        *(kind(call) for (_, kind), call in zip(cuda_jit.RunTime._fields_, calls, strict=True))
    )
    library.diva_set_run_time(ctypes.byref(functions))
    launchers.call_every_launcher(library)
    return sizes


WORDS = {"8": 1, "16": 2, "32": 4, "64": 8}  # bits of a PTX type -> bytes


def parameter_sizes(ptx: str, entry: str) -> list[int]:
    """Of the kernel in the PTX, in bytes, in order."""
    parameters = re.search(rf"\.entry {re.escape(entry)}\(([^)]*)\)", ptx)[1]
    found = re.findall(r"\.param\b[^,]*?\.[busf](8|16|32|64)\b[^,\[]*(?:\[(\d+)\])?", parameters)
    return [int(count) if count else WORDS[bits] for bits, count in found]


def test_parameter_sizes_are_read_from_ptx():
    ptx = """.visible .entry kernel(
        .param .align 8 .b8 kernel_param_0[28],
        .param .u64 .ptr .align 1 kernel_param_1,
        .param .f32 kernel_param_2,
        .param .u8 kernel_param_3
)"""
    assert parameter_sizes(ptx, "kernel") == [28, 8, 4, 1]


@pytest.mark.parametrize("op", launchers.NAMES)
@pytest.mark.parametrize("architecture", registers.ARCHITECTURES)
def test_kernels_take_what_launchers_hand_over(op, architecture, told_sizes):
    names = [name for name, its_op in launchers.KERNELS.items() if its_op == op]
    compiled = compile_at_run_time(registers.CSRC / op / f"{op}_cuda.cu", architecture, names)
    assert compiled.error == ""
    of_kernels = {name: parameter_sizes(compiled.ptx, compiled.lowered[name]) for name in names}
    assert of_kernels == {name: told_sizes[name] for name in names}


@pytest.mark.parametrize("name", launchers.KERNELS)
@pytest.mark.parametrize("architecture", registers.ARCHITECTURES)
def test_cuda_jit_compiles(name, architecture):
    pytest.importorskip("cupy")
    cubin, lowered = run_time_compiler.compile_kernel(Kernel(launchers.KERNELS[name], name), architecture)
    assert cubin.startswith(b"\x7fELF")
    assert lowered.encode() in cubin


def test_cuda_jit_tells_why_a_kernel_does_not_compile():
    pytest.importorskip("cupy")
    kernel = Kernel("group_stats", "diva::group_stats_kernel")
    with pytest.raises(RuntimeError, match=r"group_stats: NVRTC could not compile it for sm_30: .*gpu-architecture"):
        run_time_compiler.compile_kernel(kernel, 30)
