from __future__ import annotations

import ctypes
import math

import pytest
import torch

from python_tests.emulation import kernels
from python_tests.ops import test_token_logprob as on_cpu

SOURCE = "token_logprob/token_logprob_cuda.cu"
TYPES = [torch.float32, torch.bfloat16, torch.float16]  # in the order of DivaLogitType
SHAPES = on_cpu.SHAPES | {"a wide block": (2, 9001)}
del SHAPES["a vocabulary"]


class Logits(ctypes.Structure):
    _fields_ = [("values", ctypes.c_void_p)] + [(n, ctypes.c_int64) for n in ("row_stride", "num_rows", "num_columns")]


class Results(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in ("logprob", "entropy", "log_norm")]


class Gradients(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in ("logprob", "entropy")]


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return kernels.emulate(tmp_path_factory.mktemp("token_logprob"), SOURCE)


def logits_of(tensor):
    return Logits(tensor.data_ptr(), tensor.stride(0), *tensor.shape)


def run(library, logits, targets, temperature, output):
    """logprob, entropy, and the gradient of rows * logprob + 0.3 * entropy, written to `output`."""
    kind, temperature = ctypes.c_int(TYPES.index(logits.dtype)), ctypes.c_float(temperature)
    results = [torch.full((len(targets),), math.nan) for _ in range(3)]
    found = Results(*(result.data_ptr() for result in results))
    common = kind, logits_of(logits), targets, temperature, found
    kernels.launch(library, "diva_token_logprob_cuda", *common)
    weights = torch.arange(1, len(targets) + 1, dtype=torch.float32), torch.full((len(targets),), 0.3)
    gradients = Gradients(*(weight.data_ptr() for weight in weights))
    kernels.launch(library, "diva_token_logprob_backward_cuda", *common, gradients, logits_of(output))
    return results[0], results[1], output


def differs(library, logits, targets, temperature=0.7, output=None) -> bool:
    want = on_cpu.call(on_cpu.token_logprob, logits, targets, temperature)
    output = torch.full_like(logits, math.nan) if output is None else output
    got = run(library, logits, targets, temperature, output)
    tolerances = 2e-6, 2e-6, on_cpu.TOLERANCE[logits.dtype][1]
    same = [
        torch.allclose(a.float(), b.float(), rtol=tolerance, atol=tolerance, equal_nan=True)
        for a, b, tolerance in zip(got, want, tolerances, strict=True)
    ]
    return not all(same)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", TYPES)
def test_the_kernel_equals_the_cpu(library, shape, dtype):
    assert not differs(library, *on_cpu.draw(SHAPES[shape], dtype))


@pytest.mark.parametrize("first", range(9))
@pytest.mark.parametrize("dtype", TYPES)
def test_rows_may_begin_anywhere(library, first, dtype):
    wide, targets = on_cpu.draw((4, 77), dtype)
    rows = wide[:, first : first + 60]
    assert not differs(library, rows, targets % 60, output=torch.full_like(wide, math.nan)[:, first : first + 60])
    assert not differs(library, rows, targets % 60, output=torch.full((4, 60), math.nan, dtype=dtype))


@pytest.mark.parametrize("dtype", TYPES)
def test_the_gradient_can_take_the_place_of_the_logits(library, dtype):
    logits, targets = on_cpu.draw((3, 1030), dtype)
    shared = logits.clone()
    want = on_cpu.call(on_cpu.token_logprob, logits, targets, 0.7)[2]
    run(library, shared, targets, 0.7, output=shared)
    torch.testing.assert_close(shared, want, rtol=on_cpu.TOLERANCE[dtype][1], atol=on_cpu.TOLERANCE[dtype][1])


@pytest.mark.parametrize("dtype", TYPES)
def test_banned_and_broken_logits_travel_alike(library, dtype):
    logits, targets = on_cpu.draw((5, 200), dtype)
    logits[:, ::3] = -math.inf
    targets[:] = 1
    logits[1, 7], logits[2, 7], logits[3] = math.nan, math.inf, -math.inf
    assert not differs(library, logits, targets)


def test_a_target_out_of_range_is_nan(library):
    logits, _ = on_cpu.draw((3, 40), torch.float32)
    output = torch.full_like(logits, math.nan)
    logprob, entropy, _ = run(library, logits, torch.tensor([40, 3, -100]), 1.0, output)
    assert logprob.isnan().tolist() == [True, False, True]
    assert entropy.isnan().tolist() == [True, False, True]


FAULTS = {
    "no barrier before the target is written": {"  __syncthreads();  // the target's": "  // the target's"},
    "sums not rescaled": {
        "sums.max) sums = relative_to(sums, highest * scale)": "sums.max) sums.max = highest * scale"
    },
    "a butterfly one step short": {"half = kLanes / 2; half > 0": "half = kLanes / 4; half > 0"},
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_noticed(tmp_path, name):
    library = kernels.emulate(tmp_path, SOURCE, faults=FAULTS[name])
    logits, targets = on_cpu.draw((4, 1031), torch.float16, scale=8.0)
    targets[:] = 830  # a logit whose own thread writes late
    assert differs(library, logits, targets)
