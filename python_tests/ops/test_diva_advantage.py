from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.library import opcheck

from diva_engine.ops import diva_advantage
from diva_engine.ops.diva_advantage import BALANCES, RRBS, STDS, WEIGHTS, diva_advantage_reference
from python_tests.ops import ragged

TOLERANCE = {torch.float32: 5e-6, torch.float64: 1e-12}
PLAIN = {"weight": "none", "rrb": "none", "balance": "none", "eps": 1e-12}
# One question, two prompts of levels 5 and 7: a mixed group and a solved one.
REWARDS, PROMPTS, QUESTIONS, LEVELS = [1.0, 0.0, 1.0, 1.0], [2, 2], [2], [5.0, 7.0]
HALF = 0.5**0.5

# settings -> local, global; worked out by hand
GOLDEN = {
    "z-scores": ({}, [HALF, -HALF, 0, 0], [0.5, -1.5, 0.5, 0.5]),
    "population": ({"std": "population"}, [1, -1, 0, 0], [3**-0.5, -(3**0.5), 3**-0.5, 3**-0.5]),
    "eps": ({"eps": 0.5}, [0.41421356, -0.41421356, 0, 0], [0.25, -0.75, 0.25, 0.25]),
    "weight global": (
        {"weight": "global"},
        [HALF, -HALF, 0, 0],
        [0.5 * 0.904837418, -1.5 * 1.105170918, 0.5 * 1.105170918, 0.5 * 1.105170918],
    ),
    "weight both": (
        {"weight": "both", "k": 0.2},
        [HALF * 0.818730753, -HALF * 1.221402758, 0, 0],
        [0.5 * 0.818730753, -1.5 * 1.221402758, 0.5 * 1.221402758, 0.5 * 1.221402758],
    ),
    "range": ({"rrb": "range", "r_max": 4.0}, [HALF / 4, -HALF / 4, 0, 0], [0.125, -0.375, 0.125, 0.125]),
    "threshold": ({"rrb": "threshold"}, [HALF, -HALF, 0, 0], [0.5, -1.5, 0.5, 0.5]),
    "sequences": ({"balance": "sequences"}, [1.5**0.5, -(1.5**0.5), 0, 0], [0.5, -1.5, 0.5, 0.5]),
    "minmax": ({"balance": "minmax"}, [1, -1, 0, 0], [1 / 3, -1, 1 / 3, 1 / 3]),
    "padded tokens": (
        {"balance": "padded_tokens", "lengths": torch.tensor([1, 3, 2, 2]), "max_length": 4},
        [2.25, -1.75, 0.25, 0.25],
        [0.869510, -1.912922, 0.869510, 0.869510],
    ),
}


def batch(prompts: list[int], questions: list[int], seed: int = 0, dtype=torch.float64) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    difficulty = 1 + 8 * torch.rand(len(prompts), generator=generator, dtype=dtype)
    values = ragged.rewards(sum(prompts), seed).to(dtype)
    return values, ragged.offsets_of(prompts), ragged.offsets_of(questions), difficulty


def questions_over(num_prompts: int, most: int = 4) -> list[int]:
    """Splits the prompts into questions of 1, 2, ... `most` prompts, and an empty one."""
    sizes = [0]
    while sum(sizes) < num_prompts:
        sizes.append(min(1 + len(sizes) % most, num_prompts - sum(sizes)))
    return sizes


@pytest.mark.parametrize("name", GOLDEN)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("function", [diva_advantage, diva_advantage_reference])
def test_known_values(name, dtype, function):
    changed, local, global_ = GOLDEN[name]
    arguments = (torch.tensor(REWARDS, dtype=dtype), ragged.offsets_of(PROMPTS), ragged.offsets_of(QUESTIONS))
    result = function(*arguments, torch.tensor(LEVELS, dtype=dtype), **{**PLAIN, **changed}, w_local=2.0)
    torch.testing.assert_close(result.local, torch.tensor(local, dtype=dtype), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(result.global_, torch.tensor(global_, dtype=dtype), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(result.advantage, 2 * result.local + result.global_)


def test_threshold_fades_only_groups_that_stay_low():
    rewards, prompts, questions = torch.tensor([0.1, 0.0, 0.9, 1.0]), ragged.offsets_of([2, 2]), ragged.offsets_of([2])
    result = diva_advantage(rewards, prompts, questions, torch.ones(2), **{**PLAIN, "rrb": "threshold"})
    torch.testing.assert_close(result.local, torch.tensor([0.1 * HALF, -0.1 * HALF, -HALF, HALF]))
    assert result.global_.abs().max() > 0.8  # the question's best reward is 1.0


@pytest.mark.parametrize(("weight", "rrb", "std", "balance"), list(itertools.product(WEIGHTS, RRBS, STDS, BALANCES)))
def test_every_setting_equals_the_definition(weight, rrb, std, balance):
    prompts = [5, 1, 0, 7, 33, 2, 4, 4, 64, 3]
    arguments = batch(prompts, questions_over(len(prompts)))
    lengths = torch.randint(0, 50, (sum(prompts),), generator=torch.Generator().manual_seed(2))
    options = {"weight": weight, "rrb": rrb, "std": std, "balance": balance, "lengths": lengths, "max_length": 49}
    got = diva_advantage(*arguments, **options)
    want = diva_advantage_reference(*arguments, **options)
    torch.testing.assert_close(tuple(got), tuple(want), rtol=TOLERANCE[torch.float64], atol=TOLERANCE[torch.float64])


@settings(max_examples=60, deadline=None)
@given(
    prompts=ragged.sizes,
    most=st.integers(1, 5),
    seed=st.integers(0, 2**31),
    balance=st.sampled_from(["sequences", "minmax", "none"]),
    dtype=st.sampled_from(list(TOLERANCE)),
)
def test_any_batch_equals_the_definition(prompts, most, seed, balance, dtype):
    rewards, prompt_offsets, question_offsets, difficulty = batch(prompts, questions_over(len(prompts), most), seed)
    want = diva_advantage_reference(rewards, prompt_offsets, question_offsets, difficulty, balance=balance)
    got = diva_advantage(rewards.to(dtype), prompt_offsets, question_offsets, difficulty.to(dtype), balance=balance)
    for ours, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=4 * TOLERANCE[dtype], atol=4 * TOLERANCE[dtype])


@pytest.mark.parametrize("reward", [0.0, 0.1, 0.9, 1.0])
@pytest.mark.parametrize("balance", ["sequences", "minmax", "none"])
@pytest.mark.parametrize("beside", [[], [1.0, 0.0, 0.9]])
def test_a_group_without_signal_gives_exactly_zero(reward, balance, beside):
    sizes = [1, 3, 6, 7, 8, 10, 16]
    rewards = torch.tensor([reward] * sum(sizes) + beside)
    prompts = ragged.offsets_of([*sizes, len(beside)])
    questions = ragged.offsets_of([3, 4, 1])
    difficulty = torch.arange(1.0, 9.0)
    result = diva_advantage(rewards, prompts, questions, difficulty, balance=balance, weight="both")
    dead = slice(0, sum(sizes))
    assert all(torch.count_nonzero(term[dead]) == 0 for term in result)
    assert result.advantage[dead.stop :].count_nonzero() == len(beside)


def test_the_scale_does_not_depend_on_response_lengths():
    arguments = batch([5] * 40, [2] * 20)
    lengths = torch.randint(1, 400, (200,), generator=torch.Generator().manual_seed(0))
    ours = diva_advantage(*arguments, rrb="none")
    assert abs(ours.local.std().item() - 1) < 1e-5
    theirs = diva_advantage(*arguments, rrb="none", balance="padded_tokens", lengths=lengths, max_length=4096)
    assert theirs.local.std().item() > 4  # the authors' scale, about 1 / sqrt(share of cells that are tokens)


def test_a_nan_reward_does_not_pass_unseen():
    rewards = torch.tensor([1.0, float("nan"), 1.0, 0.0])
    offsets = ragged.offsets_of([2, 2]), ragged.offsets_of([1, 1])
    assert diva_advantage(rewards, *offsets, torch.ones(2)).advantage.isnan().all()
    alone = diva_advantage(rewards, *offsets, torch.ones(2), balance="none").advantage
    assert alone.isnan().tolist() == [True, True, False, False]


def test_reads_strided_input():
    rewards, prompts, questions, difficulty = batch([2, 3, 4], [2, 1], dtype=torch.float32)
    expected = diva_advantage(rewards, prompts, questions, difficulty)
    strided = [torch.stack([t, t], dim=1)[:, 0] for t in (rewards, prompts, questions, difficulty)]
    assert not any(t.is_contiguous() for t in strided)
    assert all(torch.equal(a, b) for a, b in zip(diva_advantage(*strided), expected, strict=True))


def test_many_threads_give_the_same_bits():
    arguments = batch([3] * 20_000, [2] * 10_000, dtype=torch.float32)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    parallel = diva_advantage(*arguments)
    torch.set_num_threads(1)
    serial = diva_advantage(*arguments)
    torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(parallel, serial, strict=True))


GOOD = dict(zip(("rewards", "prompt_offsets", "question_offsets", "difficulty"), batch([2, 2], [2]), strict=True))
ERRORS = {
    "float32 levels": ({"difficulty": torch.ones(2)}, "difficulty must be Double like the other tensors"),
    "a level too many": ({"difficulty": torch.ones(3).double()}, "difficulty must have 2 entries, not 3"),
    "prompts short": ({"prompt_offsets": torch.tensor([0, 2, 3])}, "prompt_offsets must end with 4, not 3"),
    "questions long": ({"question_offsets": torch.tensor([0, 3])}, "question_offsets must end with 2, not 3"),
    "unknown weight": ({"weight": "local"}, "weight must be one of global, both, none, not 'local'"),
    "unknown balance": ({"balance": "tokens"}, "balance must be one of sequences, padded_tokens"),
    "no lengths": ({"balance": "padded_tokens"}, "needs lengths and a max_length"),
    "too long": (
        {"balance": "padded_tokens", "lengths": torch.tensor([1, 5, 1, 1]), "max_length": 4},
        r"lengths\[1\] is 5, not between 0 and max_length 4",
    ),
    "no reward range": ({"r_max": 0.0}, "r_max must be above 0"),
    "wants gradient": ({"rewards": torch.ones(4, requires_grad=True)}, "no gradient flows"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_says_what_is_wrong(name):
    changed, words = ERRORS[name]
    with pytest.raises((RuntimeError, ValueError), match=words):
        diva_advantage(**{**GOOD, **changed})


def test_is_a_well_behaved_torch_op():
    arguments = batch([2, 0, 3], [2, 1])
    lengths = torch.tensor([1, 2, 3, 4, 5])
    numbers = (0.1, 0, 0, 1.0, True, 1e-6, 1, lengths, 8, 1.0, 1.0)
    opcheck(torch.ops.diva_engine.diva_advantage.default, (*arguments, *numbers))


def test_compiles_without_a_break():
    arguments = batch([2, 3], [2])
    compiled = torch.compile(lambda *a: diva_advantage(*a).advantage * 2, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*arguments), diva_advantage(*arguments).advantage * 2)
