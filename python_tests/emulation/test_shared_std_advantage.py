from __future__ import annotations

import ctypes

import pytest
import torch

from diva_engine.ops import shared_std_advantage
from python_tests.emulation import kernels
from python_tests.ops import ragged

SOURCE = "shared_std_advantage/shared_std_advantage_cuda.cu"
TOLERANCE = 1e-6  # the moments of a bin are joined in another order than on the CPU


class Input(ctypes.Structure):
    _fields_ = [
        *[(name, ctypes.c_void_p) for name in ("rewards", "prompt_offsets", "bin_of_prompt")],
        *[(name, ctypes.c_int64) for name in ("num_rollouts", "num_prompts", "num_bins")],
    ]


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return kernels.emulate(tmp_path_factory.mktemp("shared_std_advantage"), SOURCE)


def run(library, rewards, offsets, bins, num_bins, eps=1e-6):
    advantage = torch.full_like(rewards, -7.0)
    scratch_bytes = library.diva_shared_std_advantage_scratch_bytes
    scratch_bytes.restype = ctypes.c_int64
    words = scratch_bytes(ctypes.c_int64(len(bins)), ctypes.c_int64(num_bins)) // 8
    scratch = torch.full((words,), float("nan"), dtype=torch.float64)  # nothing may be read before it is written
    tensors = Input(*(t.data_ptr() for t in (rewards, offsets, bins)), len(rewards), len(bins), num_bins)
    name = "diva_shared_std_advantage_cuda"
    kernels.launch(library, name, ctypes.byref(tensors), ctypes.c_double(eps), advantage, scratch)
    return advantage


def difference(library, sizes, num_bins):
    generator = torch.Generator().manual_seed(1)
    rewards = torch.randn(sum(sizes), generator=generator)
    bins = torch.randint(0, num_bins, (len(sizes),), generator=generator)
    arguments = (rewards, ragged.offsets_of(sizes), bins, num_bins)
    wrong = (run(library, *arguments) - shared_std_advantage(*arguments)).abs()
    return wrong.max().item() if len(wrong) else 0.0


@pytest.mark.parametrize("name", ragged.SIZES)
@pytest.mark.parametrize("num_bins", [1, 4, 60])
def test_the_kernel_equals_the_cpu(library, name, num_bins):
    assert difference(library, ragged.SIZES[name], num_bins) < TOLERANCE


def test_a_bin_without_spread_gives_exactly_zero(library):
    rewards = torch.tensor([0.9] * 20 + [1.0, 0.0])
    got = run(library, rewards, ragged.offsets_of([3, 7, 10, 2]), torch.tensor([0, 0, 1, 2]), 3, eps=0.0)
    assert got[:20].count_nonzero() == 0
    assert got[20:].tolist() == pytest.approx([0.5**0.5, -(0.5**0.5)])


def test_a_bin_that_does_not_exist_gives_nan(library):
    got = run(library, torch.tensor([1.0, 0.0, 1.0, 0.0]), ragged.offsets_of([2, 2]), torch.tensor([5, 0]), 1)
    assert got.isnan().tolist() == [True, True, False, False]


FAULTS = {
    "no wait before the bins": {"bin_moments(moments);\n  }\n  DIVA_GRID_SYNC();": "bin_moments(moments);\n  }\n"},
    "no wait after the bins": {"inverse_std(bin, eps));\n  }\n  DIVA_GRID_SYNC();": "inverse_std(bin, eps));\n  }\n"},
    "a butterfly one step short": {"half = kLanes / 2; half > 0": "half = kLanes / 2; half > 1"},
    "lanes that skip a prompt": {"int64_t p = lane; p": "int64_t p = lane + 2; p"},
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_noticed(tmp_path, name):
    library = kernels.emulate(tmp_path, SOURCE, faults=FAULTS[name])
    assert not difference(library, ragged.SIZES["many small"], 40) < TOLERANCE
