"""A decoding step gives the logits of transformers' own forward over prompt and answer, for every model family."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor

from diva_engine.policy.model import Policy, load_policy
from diva_engine.rollout.decoding import PlainDecoding
from python_tests.models import FAMILIES
from python_tests.prompts import make_prompt
from python_tests.rollout.engines import tiny_folder

NUM_STEPS = 5
GROUPS = {"even": [0, 0, 1, 1], "ragged": [0, 1, 1, 1]}


@functools.cache
def policy_of(family: str, dtype: str) -> Policy:
    return load_policy(tiny_folder(family), dtype=dtype)


def decoded_and_forward(policy: Policy, prompt_of_answer: list[int]) -> tuple[Tensor, Tensor]:
    """Logits [N, steps, V] of the same random tokens: step by step, and by one forward for each answer."""
    model: Any = policy.model
    prompts = [make_prompt(model, policy.processor, text) for text in ("how many?", "which is larger, and why?")]
    tokens = torch.randint(0, 256, (len(prompt_of_answer), NUM_STEPS), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        decoding = PlainDecoding(model, prompts, torch.tensor(prompt_of_answer), 0, NUM_STEPS)
        found = torch.stack([decoding.first_logits, *(decoding.step(column) for column in tokens.T)], dim=1)
        asked = [torch.tensor(prompts[number].token_ids) for number in prompt_of_answer]
        rows = [torch.cat(parts) for parts in zip(asked, tokens, strict=True)]
        exact = [model(input_ids=row[None]).logits[0, -NUM_STEPS - 1 :] for row in rows]
    return found.double(), torch.stack(exact).double()


@pytest.mark.parametrize("groups", GROUPS)
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_the_forwards(family: str, groups: str) -> None:
    found, exact = decoded_and_forward(policy_of(family, "float32"), GROUPS[groups])
    assert float(exact.std()) > 0.5, "logits far from flat"
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-4)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl", "llama"])
def test_bfloat16_is_as_near_to_float32_as_the_forward_in_bfloat16(family: str) -> None:
    _, exact = decoded_and_forward(policy_of(family, "float32"), GROUPS["ragged"])
    found, forward = decoded_and_forward(policy_of(family, "bfloat16"), GROUPS["ragged"])
    assert found.isfinite().all()
    error, usual = (float((logits - exact).square().mean().sqrt()) for logits in (found, forward))
    assert error < 1.3 * usual
