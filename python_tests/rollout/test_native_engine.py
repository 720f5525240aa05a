"""The native engine against transformers' generate and against the training forward."""

from __future__ import annotations

import dataclasses
import functools
import tempfile

import pytest
import torch

from diva_engine.policy.forward import answer_logprobs
from diva_engine.policy.model import Policy, load_policy
from diva_engine.records import AnswerTree, GenerationJob, Prompt, Sampling, UserError
from diva_engine.rollout.native_engine import NativeEngine
from python_tests.models import FAMILIES, build_tiny_model
from python_tests.prompts import make_prompt, random_image

TOLERANCE = 1e-5


@functools.cache
def tiny_policy(family: str) -> Policy:
    return load_policy(build_tiny_model(family, tempfile.mkdtemp(), num_layers=3))


def prompts_of(policy: Policy) -> list[Prompt]:
    """Prompts of different lengths: without a picture, with one, with several, with a forced beginning."""
    if policy.processor.image_processor is None:
        pictures = [[], [], []]
    else:
        pictures = [[random_image(84, 84)], [random_image(112, 56, 1), random_image(150, 90, 2)], []]
    texts = ["how many?", "which of them is larger, and why?", "2 + 2"]
    prompts = [make_prompt(policy.model, policy.processor, *case) for case in zip(texts, pictures, strict=True)]
    return [*prompts, make_prompt(policy.model, policy.processor, "count", pictures[0], prefix="<think> one")]


def hugging_face_greedy(policy: Policy, prompt: Prompt, max_tokens: int) -> list[int]:
    ids = torch.tensor([prompt.token_ids + prompt.prefix_ids])
    inputs = {}
    if prompt.pixel_values is not None:
        is_image = (ids == policy.processor.image_token_id).int()
        inputs = {"pixel_values": prompt.pixel_values, "image_grid_thw": prompt.image_grid_thw}
        inputs["mm_token_type_ids"] = is_image
    output = policy.model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=max_tokens,
        suppress_tokens=list(policy.processor.banned_ids),
        **inputs,
    )
    return output[0, ids.shape[1] :].tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_equals_transformers_token_for_token(family: str) -> None:
    policy = tiny_policy(family)
    jobs = [GenerationJob(prompt, (0,)) for prompt in prompts_of(policy)]
    engine = NativeEngine(policy.model, policy.processor)
    rollouts = engine.generate(jobs, Sampling(temperature=0, max_tokens=90))
    for job, [rollout] in zip(jobs, rollouts, strict=True):
        assert list(rollout.token_ids) == hugging_face_greedy(policy, job.prompt, 90)


@pytest.mark.parametrize("family", FAMILIES)
def test_logprobs_equal_the_training_forward(family: str) -> None:
    policy = tiny_policy(family)
    jobs = [GenerationJob(prompt, tuple(range(i, 3 * i + 2))) for i, prompt in enumerate(prompts_of(policy))]
    engine = NativeEngine(policy.model, policy.processor)
    rollouts = engine.generate(jobs, Sampling(temperature=0.8, max_tokens=40))
    assert [len(group) for group in rollouts] == [2, 4, 6, 8]
    trees = [
        AnswerTree(job.prompt, tuple(r.token_ids for r in group)) for job, group in zip(jobs, rollouts, strict=True)
    ]
    expected, _ = answer_logprobs(policy, trees, temperature=0.8)
    sampled = torch.tensor([logprob for group in rollouts for rollout in group for logprob in rollout.logprobs])
    torch.testing.assert_close(sampled, expected.detach(), rtol=0, atol=TOLERANCE)


def test_an_answer_does_not_depend_on_the_others_of_the_batch() -> None:
    policy = tiny_policy("qwen2_5_vl")
    engine = NativeEngine(policy.model, policy.processor)
    sampling = Sampling(max_tokens=30)
    prompts = prompts_of(policy)
    together = engine.generate([GenerationJob(prompt, (7, 8, 9)) for prompt in prompts], sampling)
    alone = engine.generate([GenerationJob(prompts[1], (9,))], sampling)
    assert alone[0][0].token_ids == together[1][2].token_ids
    in_chunks = NativeEngine(policy.model, policy.processor, max_batch_rows=2)
    again = in_chunks.generate([GenerationJob(prompt, (7, 8, 9)) for prompt in prompts], sampling)
    assert [[r.token_ids for r in group] for group in again] == [[r.token_ids for r in group] for group in together]


def test_the_same_seed_gives_the_same_bits_and_another_seed_another_answer() -> None:
    policy = tiny_policy("qwen2_5_vl")
    engine = NativeEngine(policy.model, policy.processor)
    jobs = [GenerationJob(prompts_of(policy)[0], (1, 2, 1))]
    [first], [second] = engine.generate(jobs, Sampling(max_tokens=30)), engine.generate(jobs, Sampling(max_tokens=30))
    assert first == second
    assert first[0].token_ids == first[2].token_ids
    assert first[0].token_ids != first[1].token_ids


def test_answers_outgrow_the_first_cache() -> None:
    policy = tiny_policy("qwen3_vl")
    stop_never = dataclasses.replace(policy.processor, stop_ids=())
    prompt = prompts_of(policy)[0]
    [[rollout]] = NativeEngine(policy.model, stop_never).generate(
        [GenerationJob(prompt, (3,))], Sampling(max_tokens=300)
    )
    assert len(rollout.token_ids) == 300
    assert rollout.finish_reason == "length"
    expected, _ = answer_logprobs(policy, [AnswerTree(prompt, (rollout.token_ids,))])
    torch.testing.assert_close(torch.tensor(rollout.logprobs), expected.detach(), rtol=0, atol=TOLERANCE)


def test_an_answer_ends_with_its_stop_token_and_its_text_begins_with_the_prefix() -> None:
    policy = tiny_policy("qwen2_5_vl")
    prompt = prompts_of(policy)[3]
    rollouts = NativeEngine(policy.model, policy.processor).generate(
        [GenerationJob(prompt, tuple(range(40)))], Sampling(max_tokens=60)
    )[0]
    stopped = [rollout for rollout in rollouts if rollout.finish_reason == "stop"]
    assert 0 < len(stopped) < len(rollouts)
    for rollout in rollouts:
        ends = [token in policy.processor.stop_ids for token in rollout.token_ids]
        assert ends.index(True) == len(ends) - 1 if rollout in stopped else len(ends) == 60 and not any(ends)
        assert rollout.text.startswith("<think> one")
        assert "<|im_end|>" not in rollout.text
        assert not set(rollout.token_ids) & set(policy.processor.banned_ids)


@pytest.mark.parametrize(
    ("num_seeds", "sizes"),
    [([], []), ([0], [0]), ([0, 2, 0, 1], [0, 2, 0, 1])],
    ids=["no jobs", "a job without seeds", "ragged"],
)
def test_every_job_gets_an_answer_a_seed(num_seeds: list[int], sizes: list[int]) -> None:
    policy = tiny_policy("qwen2")
    jobs = [
        GenerationJob(prompt, tuple(range(n)))
        for prompt, n in zip(prompts_of(policy)[: len(num_seeds)], num_seeds, strict=True)
    ]
    rollouts = NativeEngine(policy.model, policy.processor).generate(jobs, Sampling(max_tokens=3))
    assert [len(group) for group in rollouts] == sizes


def test_new_weights_are_used_and_their_version_is_recorded() -> None:
    policy = load_policy(tiny_policy("qwen2_5_vl").folder)
    engine = NativeEngine(policy.model, policy.processor)
    jobs = [GenerationJob(prompts_of(policy)[0], (1,))]
    [[before]] = engine.generate(jobs, Sampling(max_tokens=20))
    with torch.no_grad():
        policy.model.model.language_model.layers[0].self_attn.q_proj.weight.mul_(3)
    engine.update_weights(policy_version=5)
    [[after]] = engine.generate(jobs, Sampling(max_tokens=20))
    assert (before.policy_version, after.policy_version) == (0, 5)
    expected, _ = answer_logprobs(policy, [AnswerTree(jobs[0].prompt, (after.token_ids,))])
    torch.testing.assert_close(torch.tensor(after.logprobs), expected.detach(), rtol=0, atol=TOLERANCE)
    assert before.logprobs != after.logprobs


def test_the_model_is_left_in_the_mode_it_was_in() -> None:
    policy = load_policy(tiny_policy("qwen2_5_vl").folder)
    policy.model.train()
    policy.model.model.visual.eval()
    engine = NativeEngine(policy.model, policy.processor)
    [[rollout]] = engine.generate([GenerationJob(prompts_of(policy)[0], (1,))], Sampling(max_tokens=5))
    assert policy.model.model.language_model.training
    assert not policy.model.model.visual.training
    logprobs, _ = answer_logprobs(policy, [AnswerTree(prompts_of(policy)[0], (rollout.token_ids,))])
    logprobs.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in policy.model.parameters() if p.grad is not None)


def test_a_model_whose_decoder_is_unknown_is_refused() -> None:
    policy = load_policy(tiny_policy("qwen2").folder)
    policy.model.config.model_type = "mamba"
    with pytest.raises(
        UserError, match=r"does not know the decoder of model type 'mamba'.*take a model of one of these"
    ):
        NativeEngine(policy.model, policy.processor)
