from __future__ import annotations

import ctypes
import math

import pytest
import torch

from diva_engine.ops.policy_loss import TOTALS
from python_tests.emulation import kernels
from python_tests.ops import ragged
from python_tests.ops import test_policy_loss as on_cpu

SOURCE = "policy_loss/policy_loss_cuda.cu"
TOLERANCE = 1e-5  # sums are added in another order than on the CPU
TENSORS = ("logprob", "old_logprob", "advantage", "ref_logprob", "sampler_logprob")
REALS = ("low", "high", "dual", "tau_positive", "tau_negative", "kl_coef", "truncation", "scale")


class Input(ctypes.Structure):
    _fields_ = [
        *[(name, ctypes.c_void_p) for name in (*TENSORS, "offsets")],
        *[(name, ctypes.c_int64) for name in ("num_tokens", "num_sequences")],
    ]


class Settings(ctypes.Structure):
    _fields_ = [
        *[(name, ctypes.c_int) for name in ("loss", "kl")],
        *[(name, ctypes.c_bool) for name in ("sequence_ratio", "sequence_mean")],
        *[(name, ctypes.c_float) for name in REALS],
    ]


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return kernels.emulate(tmp_path_factory.mktemp("policy_loss"), SOURCE)


def settings_of(chosen):
    defaults = {
        "loss": "ppo",
        "kl": "k3",
        "aggregation": "token_mean",
        "clip_low": 0.2,
        "clip_high": 0.2,
        "divisor": 1.0,
    }
    chosen = defaults | chosen
    return Settings(
        loss=["ppo", "cispo", "sapo"].index(chosen["loss"]),
        kl=["k1", "k2", "k3"].index(chosen["kl"]),
        sequence_ratio=chosen.get("ratio") == "sequence",
        sequence_mean=chosen["aggregation"] == "sequence_mean",
        low=1 - chosen["clip_low"],
        high=1 + chosen["clip_high"],
        dual=chosen.get("clip_dual", math.inf),
        tau_positive=chosen.get("tau_positive", 1.0),
        tau_negative=chosen.get("tau_negative", 1.05),
        kl_coef=chosen.get("kl_coef", 0.0),
        truncation=chosen.get("truncation", 2.0),
        scale=1 / chosen["divisor"],
    )


def run(library, tensors, chosen):
    """loss, gradient, totals; every buffer begins as NaN, so that reading before writing shows."""
    tokens, sequences = len(tensors["logprob"]), len(tensors["offsets"]) - 1
    given = [name for name in TENSORS if chosen.get(name, name in TENSORS[:3])]
    pointers = {name: tensors[name].data_ptr() for name in given}
    arguments = Input(**pointers, offsets=tensors["offsets"].data_ptr(), num_tokens=tokens, num_sequences=sequences)
    settings = settings_of(chosen)
    library.diva_policy_loss_workspace.restype = ctypes.c_int64
    workspace = torch.full((library.diva_policy_loss_workspace(ctypes.c_int64(tokens)),), math.nan, dtype=torch.float64)
    mean, loss, gradient = (torch.full((count,), math.nan) for count in (sequences, 1, tokens))
    totals = torch.full((len(TOTALS),), math.nan, dtype=torch.float64)
    structures = ctypes.byref(arguments), ctypes.byref(settings)
    kernels.launch(library, "diva_policy_loss_cuda", *structures, mean, workspace, loss, gradient, totals)
    return loss[0], gradient, totals


def differs(library, sizes, chosen) -> bool:
    tensors = on_cpu.batch(sizes, seed=2, dtype=torch.float32)
    chosen = chosen | {"divisor": 0.75}
    want = on_cpu.call(on_cpu.policy_loss, tensors, chosen)
    pairs = zip(run(library, tensors, chosen), want, strict=True)
    return not all(torch.allclose(a, b, rtol=TOLERANCE, atol=TOLERANCE) for a, b in pairs)


@pytest.mark.parametrize("chosen", on_cpu.SETTINGS)
@pytest.mark.parametrize("sizes", ["ragged", "around a block", "many small"])
def test_the_kernel_equals_the_cpu(library, chosen, sizes):
    assert not differs(library, ragged.SIZES[sizes], on_cpu.SETTINGS[chosen])


@pytest.mark.parametrize("sizes", on_cpu.SIZES)
def test_other_shapes_equal_the_cpu(library, sizes):
    assert not differs(library, on_cpu.SIZES[sizes], on_cpu.SETTINGS["all at once"])


def test_wrong_offsets_read_nothing_outside(library):
    tensors = on_cpu.batch([4], dtype=torch.float32)
    tensors["offsets"] = torch.tensor([-7, 3, 99, 1, 50])
    run(
        library, tensors, on_cpu.SETTINGS["gspo"] | {"divisor": 1.0}
    )  # the result is void; under a sanitizer a stray read would stop it


FAULTS = {
    "no barrier before the warps' sums are read": {
        "warp_sums[warp][sum] = joint;\n  }\n  __syncthreads();": "warp_sums[warp][sum] = joint;\n  }",
    },
    "no barrier before the rows are read": {"[sum] = joint;\n  __syncthreads();": "[sum] = joint;"},
    "the sequence before": {"(offsets[middle] <= token ? low : high)": "(offsets[middle] < token ? low : high)"},
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_noticed(tmp_path, name):
    library = kernels.emulate(tmp_path, SOURCE, faults=FAULTS[name])
    assert differs(library, [700, 900, 0, 440], on_cpu.SETTINGS["all at once"])
