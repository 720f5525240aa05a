"""The launchers as a build without nvcc has them: they name their kernels and hand the launches to whoever set a run
time (csrc/common/run_time.h). `EmulatedDriver` stands in for CuPy below `diva_engine.ops.cuda_jit` and runs the kernel
that is named on the emulation.
"""

from __future__ import annotations

import ctypes
import math
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import torch

from diva_engine.ops import pack_images
from diva_engine.records import ImageOperation
from python_tests.emulation import (
    kernels,
    test_diva_advantage,
    test_group_stats,
    test_histogram_entropy,
    test_perturb_images,
    test_policy_loss,
    test_shared_std_advantage,
    test_spectral_entropy,
    test_token_logprob,
    test_update_difficulty,
)
from python_tests.ops.pictures import noise_image

STORED = ("float", "diva::BFloat16", "diva::Float16")
NAMES = {
    "group_stats": ("group_stats_kernel",),
    "diva_advantage": ("diva_advantage_kernel",),
    "shared_std_advantage": ("shared_std_advantage_kernel",),
    "update_difficulty": ("update_difficulty_kernel",),
    "policy_loss": ("mean_log_ratio_kernel", "policy_loss_kernel", "policy_loss_finish_kernel"),
    "token_logprob": tuple(f"token_logprob_{part}kernel<{t}>" for t in STORED for part in ("", "backward_")),
    "spectral_entropy": (
        *(f"{name}_kernel<{t}>" for t in STORED for name in ("patch_mean", "gram")),
        "spectrum_kernel",
    ),
    "perturb_images": ("edge_mean_kernel", "perturb_kernel"),
    "histogram_entropy": ("histogram_kernel", "entropy_kernel"),
}
KERNELS = {f"diva::{name}": op for op, names in NAMES.items() for name in names}
SOURCES = [f"{op}/{op}_cuda.cu" for op in NAMES]

ENTRIES = """
#include <utility>
namespace driver {
template <typename... P, size_t... I>
void run(void (*kernel)(P...), void** arguments, std::index_sequence<I...>) {
  kernel(*static_cast<P*>(arguments[I])...);
}
template <typename... P>
void launch(void (*kernel)(P...), const unsigned* g, const unsigned* b, int64_t shared_bytes, bool is_cooperative,
            void** arguments) {
  const auto body = [=] { run(kernel, arguments, std::index_sequence_for<P...>{}); };
  const dim3 grid(g[0], g[1], g[2]), block(b[0], b[1], b[2]);
  is_cooperative ? emulation::launch_cooperative(grid, block, shared_bytes, body)
                 : emulation::launch(grid, block, shared_bytes, body);
}
template <typename... P>
int sizes(void (*)(P...), int64_t* into) {
  ((*into++ = sizeof(P)), ...);
  return sizeof...(P);
}
}  // namespace driver
extern "C" int64_t number_of_plans() { return emulation::plans.size(); }
extern "C" const emulation::Plan* first_plan() { return emulation::plans.data(); }
extern "C" void forget_plans() { emulation::plans.clear(); }
"""
ENTRY = """
extern "C" void launch_{number}(const unsigned* grid, const unsigned* block, int64_t shared_bytes, bool together,
                                void** arguments) {{
  driver::launch(&{kernel}, grid, block, shared_bytes, together, arguments);
}}
extern "C" int sizes_{number}(int64_t* into) {{ return driver::sizes(&{kernel}, into); }}
"""


def build(folder: Path) -> ctypes.CDLL:
    """The launchers of all ops, compiled by the C++ compiler alone."""
    library = folder / "launchers.so"
    compiler = os.environ.get("CXX", "g++")
    command = [
        compiler,
        "-std=c++17",
        "-O1",
        "-g",
        "-ffp-contract=off",
        "-fPIC",
        "-shared",
        "-Wall",
        "-Wextra",
        "-Werror",
    ]
    command += ["-DDIVA_RUN_TIME_KERNELS", f"-I{kernels.CSRC}", "-x", "c++", "-", "-o", str(library)]
    unit = "".join(f'#include "{source}"\n' for source in (*SOURCES, "common/run_time.cpp"))
    subprocess.run(command, input=unit, text=True, check=True)
    return ctypes.CDLL(str(library))


def emulate_all(folder: Path) -> ctypes.CDLL:
    """The emulated kernels of all ops, each with an entry that takes what CUDA's driver takes."""
    entries = folder / "entries.cu"
    numbered = enumerate(KERNELS)
    entries.write_text(ENTRIES + "".join(ENTRY.format(number=number, kernel=kernel) for number, kernel in numbered))
    return kernels.emulate(folder, *SOURCES, str(entries))


class Plan(ctypes.Structure):
    """emulation::Plan."""

    _fields_ = (
        ("grid", ctypes.c_int64 * 3),
        ("block", ctypes.c_int64 * 3),
        ("shared_bytes", ctypes.c_int64),
        ("is_cooperative", ctypes.c_int64),
    )

    def words(self) -> tuple[object, ...]:
        return tuple(self.grid), tuple(self.block), self.shared_bytes, bool(self.is_cooperative)


def plans_of(emulated: ctypes.CDLL) -> list[tuple[object, ...]]:
    """What was launched on the emulation since the last call of this."""
    emulated.first_plan.restype = ctypes.POINTER(Plan)
    plans = [emulated.first_plan()[i].words() for i in range(emulated.number_of_plans())]
    emulated.forget_plans()
    return plans


class EmulatedDriver:
    """In the place of `cupy.cuda.driver` and `.runtime`; memory is the host's. Functions are known by number + 1."""

    CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES = 8
    memcpyDeviceToHost = 2

    def __init__(self, emulated: ctypes.CDLL) -> None:
        self.emulated = emulated
        self.allowed: dict[int, int] = {}  # function -> bytes of dynamic shared memory
        self.devices: list[int] = []

    def setDevice(self, device: int) -> None:
        self.devices.append(device)

    def moduleLoadData(self, image: bytes) -> bytes:
        return image

    def moduleGetFunction(self, module: bytes, name: str) -> int:
        assert module == b"cubin"
        return list(KERNELS).index(name) + 1

    def funcSetAttribute(self, function: int, attribute: int, value: int) -> None:
        assert attribute == self.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        self.allowed[function] = value

    def occupancyMaxActiveBlocksPerMultiprocessor(self, function: int, threads: int, shared_bytes: int) -> int:
        assert (threads, shared_bytes) == (256, 0)
        return 2  # as the emulation's own

    def launchKernel(self, *words: int) -> None:
        *words, extra = words
        assert extra == 0
        self._launch(False, *words)

    def launchCooperativeKernel(self, *words: int) -> None:
        self._launch(True, *words)

    def _launch(self, together: bool, function: int, *words: int) -> None:
        grid, block, (shared_bytes, stream, arguments) = words[:3], words[3:6], words[6:]
        assert stream == 0
        assert shared_bytes <= self.allowed.get(function, 0)
        dimensions = ((ctypes.c_uint * 3)(*grid), (ctypes.c_uint * 3)(*block))
        pointer = ctypes.c_void_p(arguments)
        self.emulated[f"launch_{function - 1}"](*dimensions, ctypes.c_int64(shared_bytes), together, pointer)

    def memsetAsync(self, address: int, value: int, num_bytes: int, stream: int) -> None:
        ctypes.memset(address, value, num_bytes)

    def memcpyAsync(self, to: int, address: int, num_bytes: int, kind: int, stream: int) -> None:
        assert kind == self.memcpyDeviceToHost
        ctypes.memmove(to, address, num_bytes)

    def streamSynchronize(self, stream: int) -> None:
        pass

    def streamIsCapturing(self, stream: int) -> bool:
        return False


def call_every_launcher(library: ctypes.CDLL) -> list[torch.Tensor]:
    """Small work for each op, which between them launches every kernel. What came out, NaN as 0."""
    rewards, offsets = torch.linspace(-1, 1, 20), torch.tensor([0, 3, 3, 20])
    out = list(test_group_stats.run(library, rewards, offsets))
    out.append(test_shared_std_advantage.run(library, rewards, offsets, torch.tensor([0, 1, 0]), 2))
    options = {**test_diva_advantage.DEFAULT, "lengths": torch.ones(20, dtype=torch.int64), "max_length": 1}
    out += test_diva_advantage.run(library, rewards, offsets, torch.tensor([0, 2, 3]), torch.ones(3), **options)
    table = torch.full((5,), 5.0)
    out.append(test_update_difficulty.run(library, table, torch.tensor([4, 1]), torch.tensor([1.0, 0.3])))
    tensors = test_policy_loss.on_cpu.batch([700, 0, 900], dtype=torch.float32)
    out += test_policy_loss.run(library, tensors, test_policy_loss.on_cpu.SETTINGS["gspo"])
    for dtype in test_token_logprob.TYPES:
        logits, targets = test_token_logprob.on_cpu.draw((3, 70), dtype)
        out += test_token_logprob.run(library, logits, targets, 0.7, torch.full_like(logits, math.nan))
        features, bounds = test_spectral_entropy.on_cpu.draw([7, 20, 3], 24, dtype)
        out.append(test_spectral_entropy.run(library, features, bounds))
    images = pack_images([noise_image((40, 70, 3)), noise_image((33, 31, 1))])
    out.append(test_histogram_entropy.run(library, images))
    turned: Sequence[ImageOperation] = test_perturb_images.CHAINS["the paper's hardest"]
    plan = test_perturb_images.plan_perturbations(images.sizes, images.offsets, [turned, turned], range(2))
    out.append(test_perturb_images.run(library, images, plan))
    return [tensor.float().nan_to_num() for tensor in out]
