"""The packed training forward equals plain, unpacked transformers forwards: log-probabilities and gradients."""

from __future__ import annotations

import functools
import random
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch

from diva_engine.policy import forward
from diva_engine.policy.forward import answer_logprobs
from diva_engine.policy.model import Policy, load_policy
from diva_engine.records import AnswerTree, Prompt
from python_tests.models import FAMILIES, VISION_FAMILIES, build_tiny_model
from python_tests.prompts import make_prompt, random_image

TOLERANCE = 1e-5


@functools.cache
def tiny_folder(family: str) -> Path:
    return build_tiny_model(family, tempfile.mkdtemp())


@functools.cache
def tiny_policy(family: str, attn_implementation: str = "sdpa") -> Policy:
    return load_policy(tiny_folder(family), attn_implementation=attn_implementation)


def random_answers(lengths: list[int], seed: int = 0) -> tuple[tuple[int, ...], ...]:
    draw = random.Random(seed)
    return tuple(tuple(draw.randrange(256) for _ in range(length)) for length in lengths)


def prompt(policy: Policy, num_images: int, prefix: str = "") -> Prompt:
    sizes = [(84, 84), (112, 56), (150, 90)][:num_images]
    images = [random_image(*size, seed=i) for i, size in enumerate(sizes)]
    return make_prompt(policy.model, policy.processor, f"what is in {num_images} images?", images, prefix)


def trees_of(policy: Policy, case: str) -> list[AnswerTree]:
    has_images = policy.processor.image_processor is not None
    one, several = (1, 3) if has_images else (0, 0)
    cases = {
        "one answer": [AnswerTree(prompt(policy, one), random_answers([7]))],
        "ragged answers": [AnswerTree(prompt(policy, one), random_answers([5, 1, 9, 2]))],
        "several images": [AnswerTree(prompt(policy, several), random_answers([4, 6]))],
        "no image": [AnswerTree(prompt(policy, 0), random_answers([4, 6]))],
        "forced prefix, not trained": [AnswerTree(prompt(policy, one, "<think> 1"), random_answers([4, 6]))],
        "forced prefix, trained": [AnswerTree(prompt(policy, one, "<think> 1"), random_answers([4, 6]), True)],
        "prefix alone": [AnswerTree(prompt(policy, one, "<think> 1"), (), True)],
        "rows of unequal length": [
            AnswerTree(prompt(policy, one), random_answers([3, 8])),
            AnswerTree(prompt(policy, several, "so"), random_answers([6, 2, 5]), True),
            AnswerTree(prompt(policy, 0), random_answers([2])),
        ],
    }
    return cases[case]


CASES = (
    "one answer",
    "ragged answers",
    "several images",
    "no image",
    "forced prefix, not trained",
    "forced prefix, trained",
    "prefix alone",
    "rows of unequal length",
)


def plain_logprobs(policy: Policy, tree: AnswerTree, temperature: float) -> torch.Tensor:
    """Every sequence of the tree by itself through the whole transformers model, which finds its own positions."""
    parts = []
    prefix = tree.prompt.prefix_ids
    if tree.train_prefix:
        parts.append(plain_sequence(policy, tree.prompt, prefix, len(prefix), temperature))
    for branch in tree.branches:
        parts.append(plain_sequence(policy, tree.prompt, prefix + branch, len(branch), temperature))
    return torch.cat(parts)


def plain_sequence(
    policy: Policy, prompt: Prompt, answer: tuple[int, ...], num_trained: int, temperature: float
) -> torch.Tensor:
    ids = torch.tensor([prompt.token_ids + answer])
    inputs: dict[str, Any] = {"input_ids": ids}
    if prompt.pixel_values is not None:
        is_image = torch.tensor(
            [[t == policy.processor.image_token_id for t in prompt.token_ids] + [False] * len(answer)]
        )
        inputs |= {
            "pixel_values": prompt.pixel_values,
            "image_grid_thw": prompt.image_grid_thw,
            "mm_token_type_ids": is_image.int(),
        }
    logits = policy.model(**inputs).logits[0, -num_trained - 1 : -1] / temperature
    logits[:, list(policy.processor.banned_ids)] = float("-inf")
    return logits.log_softmax(-1).gather(1, ids[0, -num_trained:, None])[:, 0]


def gradients(policy: Policy, logprobs: torch.Tensor) -> dict[str, torch.Tensor]:
    weights = torch.randn(len(logprobs), generator=torch.Generator().manual_seed(1))
    policy.model.zero_grad()
    (logprobs * weights).sum().backward()
    return {name: p.grad.clone() for name, p in policy.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("family", FAMILIES)
def test_packed_equals_plain(family: str, case: str) -> None:
    assert_packed_equals_plain(tiny_policy(family), case)


@pytest.mark.parametrize("case", ["ragged answers", "prefix alone", "rows of unequal length"])
@pytest.mark.parametrize("family", FAMILIES)
def test_packed_equals_plain_in_sequences_of_many_lengths(family: str, case: str) -> None:
    """flash_attention_2, its kernel by the definition that stands for it on the CPU; the vision tower too."""
    assert_packed_equals_plain(tiny_policy(family, "flash_attention_2"), case)


@pytest.mark.parametrize("case", ["ragged answers", "prefix alone", "rows of unequal length"])
@pytest.mark.parametrize("family", FAMILIES)
def test_packed_equals_plain_by_flex(family: str, case: str) -> None:
    """Without gradients: torch gives none on the CPU (`test_tree_attention` says what stands for them there)."""
    policy = tiny_policy(family, "flex")
    trees = trees_of(policy, case)
    with torch.no_grad():
        packed, _ = answer_logprobs(policy, trees, temperature=0.7)
        plain = torch.cat([plain_logprobs(policy, tree, 0.7) for tree in trees])
    torch.testing.assert_close(packed, plain, rtol=0, atol=TOLERANCE)


def assert_packed_equals_plain(policy: Policy, case: str) -> None:
    trees = trees_of(policy, case)
    packed, _ = answer_logprobs(policy, trees, temperature=0.7)
    plain = torch.cat([plain_logprobs(policy, tree, 0.7) for tree in trees])
    assert len(packed) == sum(sum(tree.sequence_lengths) for tree in trees)
    torch.testing.assert_close(packed, plain, rtol=0, atol=TOLERANCE)
    packed_gradients = gradients(policy, packed)
    plain_gradients = gradients(policy, plain)
    assert packed_gradients.keys() == plain_gradients.keys()
    for name, gradient in plain_gradients.items():
        scale = max(1.0, float(gradient.norm()))
        torch.testing.assert_close(packed_gradients[name] / scale, gradient / scale, rtol=0, atol=TOLERANCE, msg=name)


def test_chunks_of_the_head_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = tiny_policy("qwen2_5_vl")
    trees = trees_of(policy, "rows of unequal length")
    whole, entropy = answer_logprobs(policy, trees)
    whole_gradients = gradients(policy, whole)
    monkeypatch.setattr(forward, "LOGITS_PER_CHUNK", 5 * policy.model.config.text_config.vocab_size)
    chunked, chunked_entropy = answer_logprobs(policy, trees)
    torch.testing.assert_close(chunked, whole, rtol=0, atol=1e-6)
    torch.testing.assert_close(chunked_entropy, entropy, rtol=0, atol=1e-6)
    for name, gradient in gradients(policy, chunked).items():
        torch.testing.assert_close(gradient, whole_gradients[name], rtol=1e-5, atol=1e-5, msg=name)


def test_entropy_is_of_the_sampled_distribution() -> None:
    policy = tiny_policy("qwen2")
    tree = trees_of(policy, "one answer")[0]
    _, entropy = answer_logprobs(policy, [tree], temperature=1.3)
    logits = policy.model(torch.tensor([tree.prompt.token_ids + tree.branches[0]])).logits[0, -8:-1] / 1.3
    logits[:, list(policy.processor.banned_ids)] = float("-inf")
    expected = torch.distributions.Categorical(logits=logits.detach()).entropy()
    torch.testing.assert_close(entropy, expected, rtol=0, atol=TOLERANCE)


def test_banned_tokens_get_no_probability_and_no_gradient() -> None:
    policy = tiny_policy("qwen2_5_vl")
    banned = policy.processor.banned_ids
    tree = AnswerTree(prompt(policy, 1), (random_answers([3])[0] + banned[:1],))
    logprobs, entropy = answer_logprobs(policy, [tree])
    assert logprobs[-1] == float("-inf")
    assert torch.isfinite(entropy).all()
    policy.model.zero_grad()
    logprobs[:3].sum().backward()
    head_gradient = policy.model.lm_head.weight.grad
    assert torch.isfinite(head_gradient).all()
    assert head_gradient[list(banned)].abs().max() == 0


@pytest.mark.parametrize("family", VISION_FAMILIES)
def test_frozen_vision_tower_gets_no_gradient(family: str) -> None:
    policy = load_policy(tiny_folder(family), freeze_vision_tower=True)
    logprobs, _ = answer_logprobs(policy, trees_of(policy, "one answer"))
    logprobs.sum().backward()
    assert all(p.grad is None for p in policy.model.model.visual.parameters())
    assert policy.model.lm_head.weight.grad is not None
