"""The extra cuda-jit without a GPU: launchers compiled without nvcc, what they tell Python, and what Python tells
CUDA's driver. The kernels that are named run on the emulation, from the very addresses that the driver is given."""

from __future__ import annotations

import ctypes
import logging
import sys
import types

import pytest
import torch

from diva_engine.ops import cuda_jit, run_time_compiler
from python_tests.emulation import (
    kernels,
    launchers,
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


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """The launchers as they are before anybody sets a run time."""
    return launchers.build(tmp_path_factory.mktemp("launchers"))


@pytest.fixture(scope="module")
def emulated(tmp_path_factory):
    return launchers.emulate_all(tmp_path_factory.mktemp("kernels"))


@pytest.fixture
def driver(emulated, monkeypatch):
    """CuPy below cuda_jit, and of torch the three answers that only a CUDA torch has."""
    driver = launchers.EmulatedDriver(emulated)
    for name in ("cupy", "cupy.cuda"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    sys.modules["cupy.cuda"].driver = sys.modules["cupy.cuda"].runtime = driver
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    processors = types.SimpleNamespace(multi_processor_count=2)  # as the emulation's own
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: processors)
    monkeypatch.setattr(run_time_compiler, "compile_kernel", lambda kernel, architecture: (b"cubin", kernel.name))
    run_time_compiler.function.cache_clear()
    run_time_compiler.most_blocks.cache_clear()
    return driver


@pytest.fixture
def launches(monkeypatch):
    """Kernel, file and sizes of the parameters of every launch, as the launchers tell them."""
    found = []

    def launch(pointer):
        what = pointer.contents
        found.append((what.kernel.decode(), what.file.decode(), what.sizes[: what.num_arguments]))
        cuda_jit.launch(pointer)

    monkeypatch.setattr(cuda_jit, "CALLS", (launch, *cuda_jit.CALLS[1:]))
    return found


@pytest.fixture
def library(bare, driver, launches):
    installed = cuda_jit.install(bare)
    yield bare
    bare.diva_set_run_time(None)
    del installed


def test_every_kernel_is_named_with_its_file_and_its_parameters(library, emulated, launches):
    launchers.call_every_launcher(library)
    assert {name for name, _, _ in launches} == set(launchers.KERNELS)
    for name, file, sizes in launches:
        op = launchers.KERNELS[name]
        assert run_time_compiler.SOURCES / op / f"{op}_cuda.cu" == kernels.CSRC / op / f"{op}_cuda.cu"
        assert file == str(kernels.CSRC / op / f"{op}_cuda.cu")
        of_kernel = (ctypes.c_int64 * 32)()
        count = emulated[f"sizes_{list(launchers.KERNELS).index(name)}"](of_kernel)
        assert sizes == of_kernel[:count]


def test_launches_are_those_of_the_compiled_launchers(library, emulated):
    launchers.plans_of(emulated)
    want = launchers.call_every_launcher(emulated)
    plans = launchers.plans_of(emulated)
    got = launchers.call_every_launcher(library)
    assert launchers.plans_of(emulated) == plans
    assert len(plans) > len(launchers.KERNELS)
    assert sum(together for *_, together in plans) == 2  # diva_advantage, shared_std_advantage
    assert max(shared_bytes for _, _, shared_bytes, _ in plans) == 6 * 24 * 4  # spectral_entropy: 6 vectors, side 24
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


WORK = {
    "group_stats": lambda library: test_group_stats.test_the_kernel_has_the_bits_of_the_cpu(
        library, "ragged", "normal"
    ),
    "diva_advantage": lambda library: test_diva_advantage.test_the_kernel_equals_the_cpu(
        library, "both", "threshold", "population", "padded_tokens"
    ),
    "shared_std_advantage": lambda library: test_shared_std_advantage.test_the_kernel_equals_the_cpu(
        library, "many small", 60
    ),
    "update_difficulty": lambda library: test_update_difficulty.test_the_kernel_has_the_bits_of_the_cpu(
        library, 1025, "steps"
    ),
    "policy_loss": lambda library: test_policy_loss.test_the_kernel_equals_the_cpu(library, "all at once", "ragged"),
    "token_logprob, bfloat16": lambda library: test_token_logprob.test_the_kernel_equals_the_cpu(
        library, "a wide block", torch.bfloat16
    ),
    "token_logprob, rows apart": lambda library: test_token_logprob.test_rows_may_begin_anywhere(
        library, 3, torch.float16
    ),
    "token_logprob, in place": lambda library: test_token_logprob.test_the_gradient_can_take_the_place_of_the_logits(
        library, torch.float32
    ),
    "spectral_entropy": test_spectral_entropy.test_less_working_memory_gives_the_same,
    "perturb_images": lambda library: test_perturb_images.test_the_kernels_have_the_bits_of_the_cpu(
        library, "all", True
    ),
    "histogram_entropy": test_histogram_entropy.test_the_kernels_have_the_bits_of_the_cpu,
}


@pytest.mark.parametrize("name", WORK)
def test_equals_the_cpu(library, launches, name):
    WORK[name](library)
    assert {launchers.KERNELS[kernel] for kernel, _, _ in launches} == {name.split(",")[0]}


def test_a_cooperative_grid_is_cut_to_what_fits(library, emulated):
    launchers.plans_of(emulated)
    test_diva_advantage.differences(library, test_diva_advantage.PROMPTS, test_diva_advantage.QUESTIONS)
    assert launchers.plans_of(emulated) == [((4, 1, 1), (256, 1, 1), 0, True)]  # 2 processors x 2; 9 blocks of warps


def test_a_kernel_is_compiled_once_and_announced(library, driver, caplog):
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            test_group_stats.run(library, torch.ones(4), torch.tensor([0, 4]))
    message = "built without nvcc: compiling diva::group_stats_kernel for sm_90 at run time (cuda-jit)"
    assert caplog.messages == [message]
    assert driver.devices == [3, 3]


def call_group_stats(library):
    test_group_stats.run(library, torch.ones(4), torch.tensor([0, 4]))


def test_a_kernel_that_does_not_compile_is_told(library, monkeypatch):
    def refuse(kernel, architecture):
        raise RuntimeError(f"{kernel.op}: NVRTC could not compile it for sm_{architecture}: no")

    monkeypatch.setattr(run_time_compiler, "compile_kernel", refuse)
    with pytest.raises(RuntimeError, match="RuntimeError: group_stats: NVRTC could not compile it for sm_90: no"):
        call_group_stats(library)
    monkeypatch.setattr(run_time_compiler, "compile_kernel", lambda kernel, architecture: (b"cubin", kernel.name))
    call_group_stats(library)  # the error is not remembered


def test_after_a_failed_launch_the_rest_of_the_op_is_not_launched(library, driver, launches, monkeypatch):
    def fail(*words):
        raise OSError("the device is gone")

    monkeypatch.setattr(driver, "launchKernel", fail)
    with pytest.raises(RuntimeError, match="OSError: the device is gone"):
        launchers.test_histogram_entropy.test_the_kernels_have_the_bits_of_the_cpu(library)
    assert [name for name, _, _ in launches] == ["diva::histogram_kernel"]


def test_an_interrupt_does_not_drop_a_launch(library, driver, monkeypatch):
    def interrupt(*words):
        raise KeyboardInterrupt

    monkeypatch.setattr(driver, "launchKernel", interrupt)
    with pytest.raises(RuntimeError, match="KeyboardInterrupt"):
        call_group_stats(library)


@pytest.mark.parametrize("call", [call_group_stats, launchers.call_every_launcher])
def test_without_the_extra_the_mend_is_told(bare, call):
    with pytest.raises(RuntimeError, match=r"built without its CUDA kernels; .* pip install 'diva-engine\[cuda-jit\]'"):
        call(bare)


def test_what_update_difficulty_asks_of_the_device(library, driver):
    """The op's torch half looks for NaN on the host, unless a graph is being captured."""
    levels, host = torch.tensor([1.0, 2.5]), torch.zeros(2)
    library.diva_cuda_is_capturing.restype = ctypes.c_bool
    assert library.diva_cuda_is_capturing(None) is False
    error = library.diva_cuda_copy_to_host(kernels.address(host), kernels.address(levels), ctypes.c_size_t(8), None)
    assert (error, host.tolist()) == (0, [1.0, 2.5])
    driver.streamIsCapturing = lambda stream: stream == 77
    assert library.diva_cuda_is_capturing(ctypes.c_void_p(77)) is True
