from __future__ import annotations

import ctypes
import itertools

import pytest
import torch

from diva_engine.ops import diva_advantage
from diva_engine.ops.diva_advantage import BALANCES, RRBS, STDS, WEIGHTS
from python_tests.emulation import kernels
from python_tests.ops import ragged

SOURCE = "diva_advantage/diva_advantage_cuda.cu"
TOLERANCE = 1e-6  # the batch sums are added in another order than on the CPU


class Input(ctypes.Structure):
    _fields_ = [
        *[
            (name, ctypes.c_void_p)
            for name in ("rewards", "prompt_offsets", "question_offsets", "difficulty", "lengths")
        ],
        *[(name, ctypes.c_int64) for name in ("num_rollouts", "num_prompts", "num_questions")],
    ]


class Options(ctypes.Structure):
    _fields_ = [
        ("k", ctypes.c_double),
        ("weight", ctypes.c_int64),
        ("rrb", ctypes.c_int64),
        ("r_max", ctypes.c_double),
        ("sample_std", ctypes.c_bool),
        ("eps", ctypes.c_double),
        ("balance", ctypes.c_int64),
        ("max_length", ctypes.c_int64),
        ("w_local", ctypes.c_double),
        ("w_global", ctypes.c_double),
    ]


class Output(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in ("advantage", "local", "global_")]


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return kernels.emulate(tmp_path_factory.mktemp("diva_advantage"), SOURCE)


def run(library, rewards, prompts, questions, difficulty, *, lengths, max_length, weight, rrb, std, balance):
    outputs = [torch.full_like(rewards, -7.0) for _ in range(3)]
    tensors = (rewards, prompts, questions, difficulty, lengths)
    sizes = (len(rewards), len(prompts) - 1, len(questions) - 1)
    options = Options(
        0.1,
        WEIGHTS.index(weight),
        RRBS.index(rrb),
        1.0,
        std == "sample",
        1e-6,
        BALANCES.index(balance),
        max_length,
        1,
        1,
    )
    library.diva_advantage_scratch_bytes.restype = ctypes.c_int64
    scratch_bytes = library.diva_advantage_scratch_bytes(ctypes.c_int64(sizes[1]), ctypes.c_int64(sizes[2]))
    scratch = torch.full(
        (scratch_bytes // 8,), float("nan"), dtype=torch.float64
    )  # nothing may be read before it is written
    arguments = (Input(*(t.data_ptr() for t in tensors), *sizes), options, Output(*(t.data_ptr() for t in outputs)))
    kernels.launch(library, "diva_advantage_cuda", *(ctypes.byref(argument) for argument in arguments), scratch)
    return outputs


def batch(prompts, questions):
    generator = torch.Generator().manual_seed(5)
    rewards = ragged.rewards(sum(prompts))
    lengths = torch.randint(0, 50, (sum(prompts),), generator=generator)
    difficulty = 1 + 8 * torch.rand(len(prompts), generator=generator)
    return (rewards, ragged.offsets_of(prompts), ragged.offsets_of(questions), difficulty), lengths


# More questions than the emulated grid has warps (4 blocks of 8), so that warps stride and blocks exchange sums.
PROMPTS = [5, 1, 0, 7, 33, 2, 4, 4, 64, 3] * 14
QUESTIONS = [2, 3, 0, 1, 4] * 14
DEFAULT = {"weight": "global", "rrb": "range", "std": "sample", "balance": "sequences"}


def differences(library, prompts, questions, **options):
    arguments, lengths = batch(prompts, questions)
    options = {**DEFAULT, **options, "lengths": lengths, "max_length": 49}
    got = run(library, *arguments, **options)
    want = diva_advantage(*arguments, **options)
    return [(a - b).abs().max().item() if len(a) else 0.0 for a, b in zip(got, want, strict=True)]


@pytest.mark.parametrize(("weight", "rrb", "balance"), list(itertools.product(WEIGHTS, RRBS, BALANCES)))
@pytest.mark.parametrize("std", STDS)
def test_the_kernel_equals_the_cpu(library, weight, rrb, std, balance):
    options = {"weight": weight, "rrb": rrb, "std": std, "balance": balance}
    assert max(differences(library, PROMPTS, QUESTIONS, **options)) < TOLERANCE


@pytest.mark.parametrize(
    ("prompts", "questions"),
    [([], []), ([], [0, 0]), ([1], [1]), ([1025], [1]), ([3] * 20, [20]), ([2, 2], [2])],
    ids=["nothing", "empty questions", "one rollout", "a long group", "many prompts", "small"],
)
def test_other_shapes_equal_the_cpu(library, prompts, questions):
    assert max(differences(library, prompts, questions)) < TOLERANCE


def test_a_group_without_signal_gives_exactly_zero(library):
    rewards = torch.tensor([0.9] * 7 + [1.0, 0.0, 0.9])
    tensors = rewards, ragged.offsets_of([3, 4, 3]), ragged.offsets_of([2, 1]), torch.tensor([2.0, 5.0, 4.0])
    options = {**DEFAULT, "lengths": torch.ones(10, dtype=torch.int64), "max_length": 1}
    assert all(torch.count_nonzero(term[:7]) == 0 for term in run(library, *tensors, **options))


FAULTS = {
    "no wait for the grid": {"  DIVA_GRID_SYNC();\n": ""},
    "no barrier before the batch's scale is read": {"options);\n  }\n  __syncthreads();\n": "options);\n  }\n"},
    "no barrier before the warps' sums are read": {
        "of_warp[warp] = sums;\n  __syncthreads();\n": "of_warp[warp] = sums;\n",
    },
    "a butterfly one step short": {
        "int half = kLanes / 2; half > 0; half /= 2": "int half = kLanes / 4; half > 0; half /= 2"
    },
    "one warp too few": {"lane < kDivaWarps ?": "lane < kDivaWarps - 1 ?"},
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_noticed(tmp_path, name):
    library = kernels.emulate(tmp_path, SOURCE, faults=FAULTS[name])
    assert not max(differences(library, PROMPTS, QUESTIONS, balance="padded_tokens")) < TOLERANCE


def test_a_barrier_that_only_some_threads_reach_is_reported(tmp_path):
    fault = {"  DIVA_GRID_SYNC();\n": "  if (threadIdx.x != 5) DIVA_GRID_SYNC();\n"}
    library = kernels.emulate(tmp_path, SOURCE, faults=fault)
    with pytest.raises(RuntimeError, match="wait at different barriers"):
        differences(library, PROMPTS, QUESTIONS)
