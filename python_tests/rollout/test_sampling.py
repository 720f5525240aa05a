"""Token draws: their distribution, their streams of random numbers, their edges."""

from __future__ import annotations

import pytest
import torch

from diva_engine.records import Sampling
from diva_engine.rollout.sampling import sample_tokens, uniform_table

LOGITS = torch.tensor([0.5, -1.0, float("-inf"), 2.0, 0.0, float("-inf")])


def frequencies(sampling: Sampling, num_draws: int = 20_000) -> torch.Tensor:
    """Share of each token over evenly spaced uniforms."""
    uniforms = (torch.arange(num_draws, dtype=torch.float64) + 0.5) / num_draws
    tokens, _ = sample_tokens(LOGITS.expand(num_draws, -1), uniforms, sampling)
    return torch.bincount(tokens, minlength=len(LOGITS)) / num_draws


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_draws_follow_the_softmax_at_the_temperature(temperature: float) -> None:
    expected = torch.softmax(LOGITS / temperature, dim=0)
    torch.testing.assert_close(frequencies(Sampling(temperature=temperature)), expected, rtol=0, atol=1e-4)


# Probabilities of LOGITS at temperature 1: token 3 .697, 0 .155, 4 .094, 1 .035.
NUCLEI = {
    "all of it": (1.0, [0, 1, 3, 4]),
    "cut in the middle of the second": (0.75, [0, 3]),
    "the third is needed": (0.9, [0, 3, 4]),
    "less than the first": (0.2, [3]),
    "nothing": (0.0, [3]),
}


@pytest.mark.parametrize("case", NUCLEI)
def test_top_p_keeps_the_fewest_tokens_that_hold_the_mass(case: str) -> None:
    top_p, kept = NUCLEI[case]
    expected = torch.zeros(len(LOGITS))
    expected[kept] = torch.softmax(LOGITS, dim=0)[kept]
    torch.testing.assert_close(frequencies(Sampling(top_p=top_p)), expected / expected.sum(), rtol=0, atol=1e-4)


def test_log_probabilities_are_of_the_whole_distribution() -> None:
    expected = torch.log_softmax(LOGITS / 0.5, dim=0)[3]
    for sampling in (Sampling(temperature=0.5), Sampling(temperature=0.5, top_p=0.3)):
        tokens, logprobs = sample_tokens(LOGITS[None], torch.tensor([0.5], dtype=torch.float64), sampling)
        assert tokens.tolist() == [3]
        torch.testing.assert_close(logprobs[0], expected)


def test_greedy_takes_the_largest_logit_at_temperature_one() -> None:
    tokens, logprobs = sample_tokens(LOGITS[None], torch.ones(1, dtype=torch.float64), Sampling(temperature=0))
    assert tokens.tolist() == [3]
    torch.testing.assert_close(logprobs[0], torch.log_softmax(LOGITS, dim=0)[3])


def test_impossible_tokens_are_not_drawn_at_the_edges() -> None:
    edges = torch.tensor([1e-300, 2.0**-53, 1.0 - 2.0**-53, 1.0], dtype=torch.float64)
    logits = torch.full((4, 7), float("-inf"))
    logits[:, 2:5] = torch.tensor([0.3, -200.0, 0.1])
    tokens, _ = sample_tokens(logits, edges, Sampling())
    assert tokens.tolist() == [2, 2, 4, 4]


def test_streams_are_uniform_and_belong_to_their_seed() -> None:
    table = uniform_table([5, 2**63 - 1, 6], 4000)
    assert torch.equal(table[1], uniform_table([2**63 - 1], 4000)[0])
    assert torch.equal(table[0, :10], uniform_table([5], 10)[0])
    assert table.min() > 0
    assert table.max() <= 1
    torch.testing.assert_close(table.mean(1), torch.full((3,), 0.5, dtype=torch.float64), rtol=0, atol=0.02)
    assert abs(torch.corrcoef(table)[0, 1:]).max() < 0.05
