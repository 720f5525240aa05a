from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

from diva_engine import arrays, ops
from python_tests.ops import ragged

REWARDS = ragged.rewards(28)
PROMPTS = ragged.offsets_of([3, 0, 1, 7, 2, 0, 15])
QUESTIONS = ragged.offsets_of([2, 4, 1])
LEVELS = torch.tensor([1.5, 5.0, 2.0, 9.0, 4.5, 3.0, 8.0])
BINS = torch.tensor([0, 1, 2, 1, 0, 2, 2])


class OnlyDlpack:
    """An array of a library that speaks nothing but DLPack."""

    def __init__(self, tensor):
        self._tensor = tensor

    def __dlpack__(self):
        return self._tensor.__dlpack__()

    def __dlpack_device__(self):
        return self._tensor.__dlpack_device__()


class PretendCuda:
    """Says that host memory is CUDA memory: enough to be refused before anything is launched."""

    def __init__(self, array):
        self.__cuda_array_interface__ = {**array.__array_interface__, "version": 3}


KINDS = {"numpy": lambda tensor: tensor.numpy(), "torch": lambda tensor: tensor, "dlpack": OnlyDlpack}
CALLS = {
    "group_stats": (REWARDS, PROMPTS),
    "diva_advantage": (REWARDS, PROMPTS, QUESTIONS, LEVELS),
    "shared_std_advantage": (REWARDS, PROMPTS, BINS, 3),
    "update_difficulty": (LEVELS, torch.tensor([4, 0]), torch.tensor([0.25, 1.0])),
}


def converted(arguments, kind):
    return [KINDS[kind](a.clone()) if isinstance(a, torch.Tensor) else a for a in arguments]


def as_tuple(result):
    return result if isinstance(result, tuple) else (result,)


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_kind_of_array_gives_what_torch_gets(name, kind, dtype):
    arguments = [a.to(dtype) if isinstance(a, torch.Tensor) and a.is_floating_point() else a for a in CALLS[name]]
    want = as_tuple(getattr(ops, name)(*converted(arguments, "torch")))
    got = as_tuple(getattr(arrays, name)(*converted(arguments, kind)))
    assert len(got) == len(want)
    for ours, theirs in zip(got, want, strict=True):
        assert isinstance(ours, np.ndarray)
        assert ours.dtype == theirs.numpy().dtype
        np.testing.assert_array_equal(ours, theirs.numpy())


@pytest.mark.parametrize("balance", ["padded_tokens", "minmax", "none"])
def test_settings_mean_the_same(balance):
    lengths = torch.arange(28)
    settings = {"balance": balance, "weight": "both", "rrb": "threshold", "std": "population", "k": 0.3}
    arguments = CALLS["diva_advantage"]
    want = ops.diva_advantage(*arguments, **settings, lengths=lengths, max_length=30)
    got = arrays.diva_advantage(*converted(arguments, "numpy"), **settings, lengths=lengths.numpy(), max_length=30)
    for ours, theirs in zip(got, want, strict=True):
        np.testing.assert_array_equal(ours, theirs.numpy())


def test_writes_where_it_is_told():
    mean, std, low, high = np.zeros((4, 7), np.float32)
    arrays.group_stats(REWARDS.numpy(), PROMPTS.numpy(), out=(mean, std, low, high))
    np.testing.assert_array_equal(std, ops.group_stats(REWARDS, PROMPTS).std.numpy())


def test_changes_a_table_in_place():
    table = np.full(3, 5.0, np.float32)
    updated = arrays.update_difficulty(table, np.array([2]), np.array([1.0], np.float32))
    assert updated.tolist() == [3.0]
    assert table.tolist() == [5.0, 5.0, 3.0]


FOUR, OFFSETS = np.ones(4, np.float32), np.array([0, 4])
ERRORS = {
    "a list": (([1.0], OFFSETS), {}, RuntimeError, "values is no array"),
    "a matrix": ((np.ones((2, 2), np.float32), OFFSETS), {}, RuntimeError, "one dimension, not 2"),
    "strided": ((np.ones(8, np.float32)[::2], OFFSETS), {}, RuntimeError, "values must be contiguous"),
    "integers": ((np.ones(4, np.int64), OFFSETS), {}, RuntimeError, "values must be float32"),
    "int32 offsets": ((FOUR, OFFSETS.astype(np.int32)), {}, RuntimeError, "offsets must be int64"),
    "bad offsets": ((FOUR, np.array([0, 3])), {}, RuntimeError, "offsets must end with 4, not 3"),
    "no offsets": ((FOUR, OFFSETS[:0]), {}, RuntimeError, "offsets must have at least one entry"),
    "out too few": ((FOUR, OFFSETS), {"out": (FOUR,)}, RuntimeError, "out must hold 4 arrays, not 1"),
    "out too long": ((FOUR, OFFSETS), {"out": (FOUR,) * 4}, RuntimeError, "out must have 1 entries, not 4"),
    "cuda without out": ((PretendCuda(FOUR), PretendCuda(OFFSETS)), {}, RuntimeError, "give the arrays to write to"),
    "two devices": ((FOUR, PretendCuda(OFFSETS)), {}, RuntimeError, "offsets must be on the same device"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_says_what_is_wrong(name):
    arguments, settings, error, words = ERRORS[name]
    with pytest.raises(error, match=words):
        arrays.group_stats(*arguments, **settings)


def test_refuses_an_unknown_setting():
    with pytest.raises(ValueError, match="balance must be one of sequences, padded_tokens, minmax, none, not 'tokens'"):
        arrays.diva_advantage(*converted(CALLS["diva_advantage"], "numpy"), balance="tokens")


def test_needs_no_torch():
    program = (
        "import sys, numpy as np\n"
        "from diva_engine import arrays\n"
        "print(arrays.group_stats(np.array([1, 2], np.float32), np.array([0, 2]))[0][0], 'torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1.5", "False"]
