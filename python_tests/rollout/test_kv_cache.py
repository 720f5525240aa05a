"""Attention over a prompt's shared keys and an answer's own is one softmax over both, however answers are grouped."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from diva_engine.rollout.kv_cache import KeyValueCache, attend_reference
from diva_engine.rollout.prefill import Prefill

HEADS, QUERIES, SIZE, LENGTH = 2, 3, 8, 11
GROUPS = {  # prompt of each answer
    "one answer": [0],
    "even": [0, 0, 0, 1, 1, 1],
    "one a prompt": [0, 1, 2],
    "ragged": [0, 1, 1, 1, 1, 2, 2],
}
TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-12, torch.bfloat16: 0.04}


class Check:
    """A cache beside everything it was given."""

    def __init__(self, prompt_of_answer: list[int], dtype: torch.dtype, padding: int) -> None:
        self.draw = torch.Generator().manual_seed(5)
        self.dtype, self.prompts = dtype, torch.tensor(prompt_of_answer)
        num_prompts = max(prompt_of_answer) + 1
        self.keys, self.values = (self.random(num_prompts, HEADS, LENGTH, SIZE) for _ in range(2))
        self.mask = torch.ones(num_prompts, LENGTH, dtype=torch.bool)
        self.mask[0, :padding] = False
        read = Prefill([self.keys], [self.values], self.mask, torch.zeros(num_prompts), torch.zeros(num_prompts, 1))
        self.cache = KeyValueCache(read, self.prompts)
        self.own = self.random(len(prompt_of_answer), 2 * HEADS, 0, SIZE)

    def random(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.draw).to(self.dtype)

    def keep(self, answers: list[int]) -> None:
        self.cache.keep(torch.tensor(answers))
        self.prompts, self.own = self.prompts[answers], self.own[answers]

    def step(self) -> tuple[Tensor, Tensor]:
        """A further token of every answer: what the cache attends, and the definition in float64."""
        num_answers = len(self.prompts)
        query, place = self.random(num_answers, QUERIES, HEADS, SIZE), self.random(num_answers, 2 * HEADS, SIZE)
        self.own = torch.cat([self.own, place[:, :, None]], dim=2)
        self.cache.open_place()
        found = self.cache.attend(0, query, place)
        own_keys, own_values = self.own.double().chunk(2, dim=1)
        keys = torch.cat([self.keys[self.prompts].double(), own_keys], dim=2)
        values = torch.cat([self.values[self.prompts].double(), own_values], dim=2)
        scores = torch.einsum("nqhd,nhld->nqhl", query.double(), keys) / SIZE**0.5
        scores[..., :LENGTH].masked_fill_(~self.mask[self.prompts][:, None, None], float("-inf"))
        return found, torch.einsum("nqhl,nhld->nqhd", scores.softmax(dim=-1), values)

    def steps(self, number: int) -> float:
        """The largest difference in `number` steps."""
        pairs = [self.step() for _ in range(number)]
        return max(float((found.double() - exact).abs().max()) for found, exact in pairs)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("padding", [0, 4])
@pytest.mark.parametrize("groups", GROUPS)
def test_attention_is_one_softmax_over_prompt_and_answer(groups: str, padding: int, dtype: torch.dtype) -> None:
    assert Check(GROUPS[groups], dtype, padding).steps(4) < TOLERANCE[dtype]


@pytest.mark.parametrize("kept", [[0, 1, 3, 4], [0, 3, 4, 5], [2], [3, 4, 5], [0, 1, 2, 3, 4, 5]])
def test_answers_that_stay_go_on_alike(kept: list[int]) -> None:
    check = Check(GROUPS["even"], torch.float32, padding=4)
    assert check.steps(3) < TOLERANCE[torch.float32]
    check.keep(kept)
    assert check.steps(3) < TOLERANCE[torch.float32]


def test_a_cache_that_grows_keeps_what_it_holds() -> None:
    check = Check(GROUPS["ragged"], torch.float32, padding=0)
    assert check.steps(140) < TOLERANCE[torch.float32]
    assert check.cache._own[0].shape[2] > 128


@pytest.mark.parametrize("scale", [1.0, 30.0])
@pytest.mark.parametrize("has_bias", [False, True])
def test_the_definition_of_a_part_is_what_the_cpu_kernel_computes(has_bias: bool, scale: float) -> None:
    draw = torch.Generator().manual_seed(2)
    query, keys, values = (scale * torch.randn(3, 2, places, 16, generator=draw) for places in (5, 40, 40))
    bias = torch.zeros(3, 1, 1, 40).index_fill_(3, torch.arange(7), torch.finfo(torch.float32).min)
    arguments = (query, keys, values, bias if has_bias else None)
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*arguments[:3], attn_mask=arguments[3])
    for found, exact in zip(kernel, attend_reference(*arguments), strict=True):
        torch.testing.assert_close(found, exact, rtol=1e-4, atol=1e-4)
