from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.library import opcheck

from diva_engine.ops import shared_std_advantage
from diva_engine.ops.shared_std_advantage import shared_std_advantage_reference
from python_tests.ops import ragged

TOLERANCE = {torch.float32: 3e-6, torch.float64: 1e-12}

BIN = 1 / (1 + (10 / 3) ** 0.5)
# rewards, sizes of the prompts, bins of the prompts -> advantage; worked out by hand with eps = 1
GOLDEN = {
    # One bin: std of (1, 0, 1, 1) is 0.5.
    "one bin": ([1.0, 0.0, 1.0, 1.0], [2, 2], [0, 0], [0.5 / 1.5, -0.5 / 1.5, 0.0, 0.0]),
    # Each prompt its own bin: std of (1, 0) is 0.70710678; the second has no spread.
    "two bins": ([1.0, 0.0, 1.0, 1.0], [2, 2], [1, 0], [0.29289322, -0.29289322, 0.0, 0.0]),
    # Prompts of equal rewards, in a bin with spread: nothing to tell inside a prompt.
    "equal prompts": ([1.0, 1.0, 0.0, 0.0], [2, 2], [0, 0], [0.0] * 4),
    # Bin 2 holds 4, 0, 1, 3: std sqrt(10 / 3).
    "apart": ([4.0, 0.0, 9.0, 1.0, 3.0], [2, 1, 2], [2, 0, 2], [2 * BIN, -2 * BIN, 0.0, -BIN, BIN]),
    "empty prompt": ([1.0, 0.0], [0, 2], [0, 0], [0.29289322, -0.29289322]),
}


@pytest.mark.parametrize("name", GOLDEN)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("function", [shared_std_advantage, shared_std_advantage_reference])
def test_known_values(name, dtype, function):
    rewards, sizes, bins, expected = GOLDEN[name]
    got = function(torch.tensor(rewards, dtype=dtype), ragged.offsets_of(sizes), torch.tensor(bins), 3, eps=1.0)
    torch.testing.assert_close(got, torch.tensor(expected, dtype=dtype), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ragged.SIZES)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("num_bins", [1, 3, 50])
def test_equals_the_definition(name, dtype, num_bins):
    sizes = ragged.SIZES[name]
    generator = torch.Generator().manual_seed(1)
    rewards = torch.randn(sum(sizes), generator=generator, dtype=torch.float64)
    bins = torch.randint(0, num_bins, (len(sizes),), generator=generator)
    want = shared_std_advantage_reference(rewards, ragged.offsets_of(sizes), bins, num_bins)
    got = shared_std_advantage(rewards.to(dtype), ragged.offsets_of(sizes), bins, num_bins)
    torch.testing.assert_close(got.double(), want, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@settings(max_examples=60, deadline=None)
@given(sizes=ragged.sizes, seed=st.integers(0, 2**31), num_bins=st.integers(1, 6))
def test_equals_the_definition_on_any_groups(sizes, seed, num_bins):
    rewards = ragged.rewards(sum(sizes), seed).double()
    bins = torch.randint(0, num_bins, (len(sizes),), generator=torch.Generator().manual_seed(seed))
    arguments = (rewards, ragged.offsets_of(sizes), bins, num_bins)
    torch.testing.assert_close(
        shared_std_advantage(*arguments), shared_std_advantage_reference(*arguments), rtol=1e-10, atol=1e-10
    )


@pytest.mark.parametrize("reward", [0.1, 0.9, 1 / 3])
def test_a_bin_without_spread_gives_exactly_zero(reward):
    rewards = torch.tensor([reward] * 20 + [1.0, 0.0])
    got = shared_std_advantage(rewards, ragged.offsets_of([3, 7, 10, 2]), torch.tensor([0, 0, 1, 2]), 3, eps=0.0)
    assert got[:20].count_nonzero() == 0
    assert got[20:].tolist() == pytest.approx([0.5**0.5, -(0.5**0.5)])


def test_a_nan_stays_in_its_bin():
    rewards = torch.tensor([float("nan"), 1.0, 1.0, 0.0])
    got = shared_std_advantage(rewards, ragged.offsets_of([2, 2]), torch.tensor([0, 1]), 2)
    assert got.isnan().tolist() == [True, True, False, False]


def test_reads_strided_input():
    rewards, offsets, bins = ragged.rewards(9), ragged.offsets_of([2, 3, 4]), torch.tensor([0, 1, 0])
    strided = [torch.stack([t, t], dim=1)[:, 0] for t in (rewards, offsets, bins)]
    assert torch.equal(shared_std_advantage(*strided, 2), shared_std_advantage(rewards, offsets, bins, 2))


GOOD = {"rewards": torch.ones(4), "prompt_offsets": torch.tensor([0, 2, 4]), "bin_of_prompt": torch.tensor([0, 1])}
ERRORS = {
    "bin too high": ({"bin_of_prompt": torch.tensor([0, 2])}, r"bin_of_prompt\[1\] is 2, not between 0 and 1"),
    "bin below zero": ({"bin_of_prompt": torch.tensor([-1, 1])}, r"bin_of_prompt\[0\] is -1"),
    "a bin too many": ({"bin_of_prompt": torch.tensor([0, 1, 1])}, "bin_of_prompt must have 2 entries, not 3"),
    "no bins": ({"num_bins": 0}, "num_bins must be at least 1"),
    "offsets short": ({"prompt_offsets": torch.tensor([0, 2, 3])}, "prompt_offsets must end with 4"),
    "wants gradient": ({"rewards": torch.ones(4, requires_grad=True)}, "no gradient flows"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_says_what_is_wrong(name):
    changed, words = ERRORS[name]
    with pytest.raises((RuntimeError, ValueError), match=words):
        shared_std_advantage(**{**GOOD, "num_bins": 2, **changed})


def test_is_a_well_behaved_torch_op():
    arguments = (ragged.rewards(5), ragged.offsets_of([2, 0, 3]), torch.tensor([0, 2, 2]), 3, 1e-6)
    opcheck(torch.ops.diva_engine.shared_std_advantage.default, arguments)


def test_compiles_without_a_break():
    arguments = (ragged.rewards(5), ragged.offsets_of([2, 3]), torch.tensor([0, 0]))
    compiled = torch.compile(lambda *a: shared_std_advantage(*a, 1) * 2, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*arguments), shared_std_advantage(*arguments, 1) * 2)
