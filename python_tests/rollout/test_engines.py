"""What every rollout engine does, against transformers' generate and against the training forward."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch

from diva_engine.policy.forward import answer_logprobs
from diva_engine.policy.model import Policy, load_policy
from diva_engine.policy.weights import full_weights
from diva_engine.records import AnswerTree, GenerationJob, Prompt, Rollout, Sampling
from python_tests.models import FAMILIES
from python_tests.rollout.engines import ENGINES, open_engine, prompts_of, tiny_engine, tiny_folder, tiny_policy

TOLERANCE = 3e-5


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


def logprob_gap(policy: Policy, job: GenerationJob, rollouts: list[Rollout], temperature: float = 1.0) -> float:
    """Largest difference between what an engine reported and the training forward."""
    tree = AnswerTree(job.prompt, tuple(rollout.token_ids for rollout in rollouts))
    expected, _ = answer_logprobs(policy, [tree], temperature=temperature)
    sampled = torch.tensor([logprob for rollout in rollouts for logprob in rollout.logprobs])
    return float((sampled - expected.detach()).abs().max())


@pytest.mark.parametrize("kind", ENGINES)
@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_equals_transformers_token_for_token(family: str, kind: str) -> None:
    policy = tiny_policy(family)
    jobs = [GenerationJob(prompt, (0,)) for prompt in prompts_of(policy)]
    rollouts = tiny_engine(kind, family).generate(jobs, Sampling(temperature=0, max_tokens=90))
    for job, [rollout] in zip(jobs, rollouts, strict=True):
        assert list(rollout.token_ids) == hugging_face_greedy(policy, job.prompt, 90)
        assert logprob_gap(policy, job, [rollout]) < TOLERANCE


@pytest.mark.parametrize("kind", ENGINES)
@pytest.mark.parametrize("family", FAMILIES)
def test_logprobs_equal_the_training_forward(family: str, kind: str) -> None:
    policy = tiny_policy(family)
    jobs = [GenerationJob(prompt, tuple(range(i, 3 * i + 2))) for i, prompt in enumerate(prompts_of(policy))]
    rollouts = tiny_engine(kind, family).generate(jobs, Sampling(temperature=0.8, max_tokens=40))
    assert [len(group) for group in rollouts] == [2, 4, 6, 8]
    for job, group in zip(jobs, rollouts, strict=True):
        assert logprob_gap(policy, job, group, temperature=0.8) < TOLERANCE


@pytest.mark.parametrize("kind", ENGINES)
def test_an_answer_does_not_depend_on_the_others_of_the_batch(kind: str) -> None:
    engine, sampling = tiny_engine(kind, "qwen2_5_vl"), Sampling(max_tokens=30)
    prompts = prompts_of(tiny_policy("qwen2_5_vl"))
    together = engine.generate([GenerationJob(prompt, (7, 8, 9)) for prompt in prompts], sampling)
    alone = engine.generate([GenerationJob(prompts[1], (9,))], sampling)
    assert alone[0][0].token_ids == together[1][2].token_ids


@pytest.mark.parametrize("kind", ENGINES)
def test_each_job_is_told_once_with_all_its_answers(kind: str) -> None:
    engine, told = tiny_engine(kind, "qwen2_5_vl"), []
    jobs = [GenerationJob(prompt, (1, 2)) for prompt in prompts_of(tiny_policy("qwen2_5_vl"))]
    jobs.insert(1, GenerationJob(jobs[0].prompt, ()))
    rollouts = engine.generate(jobs, Sampling(max_tokens=30), lambda job, found: told.append((job, list(found))))
    assert sorted(job for job, _ in told) == [0, 2, 3, 4]
    assert all(found == rollouts[job] for job, found in told)
    assert [len(group) for group in rollouts] == [2, 0, 2, 2, 2]


@pytest.mark.parametrize("kind", ENGINES)
def test_the_same_seed_gives_the_same_answer_and_another_seed_another(kind: str) -> None:
    engine = tiny_engine(kind, "qwen2_5_vl")
    jobs = [GenerationJob(prompts_of(tiny_policy("qwen2_5_vl"))[0], (1, 2, 1, 2**63 - 1))]
    [first], [second] = engine.generate(jobs, Sampling(max_tokens=30)), engine.generate(jobs, Sampling(max_tokens=30))
    assert [rollout.token_ids for rollout in first] == [rollout.token_ids for rollout in second]
    assert first[0].token_ids == first[2].token_ids
    assert len({rollout.token_ids for rollout in first}) == 3


@pytest.mark.parametrize("kind", ENGINES)
def test_a_long_answer_runs_to_its_limit(kind: str) -> None:
    policy = tiny_policy("qwen3_vl")
    job = GenerationJob(prompts_of(policy)[0], (3,))
    engine = open_engine(kind, policy, dataclasses.replace(policy.processor, stop_ids=()))
    [[rollout]] = engine.generate([job], Sampling(max_tokens=300))
    assert (len(rollout.token_ids), rollout.finish_reason) == (300, "length")
    assert logprob_gap(policy, job, [rollout]) < TOLERANCE


@pytest.mark.parametrize("kind", ENGINES)
def test_an_answer_ends_with_its_stop_token_and_its_text_begins_with_the_prefix(kind: str) -> None:
    processor = tiny_policy("qwen2_5_vl").processor
    job = GenerationJob(prompts_of(tiny_policy("qwen2_5_vl"))[3], tuple(range(40)))
    [rollouts] = tiny_engine(kind, "qwen2_5_vl").generate([job], Sampling(max_tokens=60))
    stopped = [rollout for rollout in rollouts if rollout.finish_reason == "stop"]
    assert 0 < len(stopped) < len(rollouts)
    for rollout in rollouts:
        ends = [token in processor.stop_ids for token in rollout.token_ids]
        assert ends.index(True) == len(ends) - 1 if rollout in stopped else len(ends) == 60 and not any(ends)
        assert rollout.text.startswith("<think> one")
        assert "<|im_end|>" not in rollout.text
        assert len(rollout.logprobs) == len(rollout.token_ids)


@pytest.mark.parametrize("kind", ENGINES)
def test_banned_tokens_are_never_drawn(kind: str) -> None:
    """Two thirds of the vocabulary are banned, which nothing but the ban holds back."""
    policy = tiny_policy("qwen2_5_vl")
    allowed = set(range(90)) | set(policy.processor.stop_ids)
    banned = tuple(i for i in range(policy.model.config.text_config.vocab_size) if i not in allowed)
    engine = open_engine(kind, policy, dataclasses.replace(policy.processor, banned_ids=banned))
    [rollouts] = engine.generate(
        [GenerationJob(prompts_of(policy)[2], tuple(range(16)))], Sampling(temperature=2, max_tokens=40)
    )
    drawn = {token for rollout in rollouts for token in rollout.token_ids}
    assert drawn <= allowed
    assert len(drawn) > 45


@pytest.mark.parametrize("kind", ENGINES)
@pytest.mark.parametrize("sizes", [[], [0], [0, 2, 0, 1]], ids=["no jobs", "a job without seeds", "ragged"])
def test_every_job_gets_an_answer_a_seed(kind: str, sizes: list[int]) -> None:
    prompts = prompts_of(tiny_policy("qwen2"))[: len(sizes)]
    jobs = [GenerationJob(prompt, tuple(range(size))) for prompt, size in zip(prompts, sizes, strict=True)]
    rollouts = tiny_engine(kind, "qwen2").generate(jobs, Sampling(max_tokens=3))
    assert [len(group) for group in rollouts] == sizes


def scale_attention(policy: Policy) -> None:
    policy.model.model.language_model.layers[0].self_attn.q_proj.weight.mul_(3)


def scale_vision(policy: Policy) -> None:
    policy.model.model.visual.merger.mlp[2].weight.mul_(2)


@pytest.mark.parametrize("kind", ENGINES)
@pytest.mark.parametrize("change", [scale_attention, scale_vision])
def test_new_weights_are_used_and_their_version_is_recorded(kind: str, change: Callable[[Policy], None]) -> None:
    """Asked the same again, so that whatever old weights left in a cache would be found."""
    policy = load_policy(tiny_folder("qwen2_5_vl"))
    engine = open_engine(kind, policy)
    jobs = [GenerationJob(prompts_of(policy)[0], (1, 2))]
    [before] = engine.generate(jobs, Sampling(max_tokens=20))
    with torch.no_grad():
        change(policy)
    engine.sleep()
    engine.update_weights(5, full_weights(policy))
    [after] = engine.generate(jobs, Sampling(max_tokens=20))
    assert (before[0].policy_version, after[0].policy_version) == (0, 5)
    assert logprob_gap(policy, jobs[0], after) < TOLERANCE
    assert logprob_gap(policy, jobs[0], before) > 0.1
