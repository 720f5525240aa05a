"""What only the vLLM engine does; what it shares with others is in test_engines.py."""

from __future__ import annotations

import dataclasses
import random

import numpy as np
import pytest
import torch

from diva_engine.config import RolloutConfig
from diva_engine.policy.model import Policy, load_policy
from diva_engine.policy.weights import full_weights
from diva_engine.records import GenerationJob, Prompt, Sampling, UserError
from python_tests.rollout.engines import MAX_MODEL_LEN, open_engine, prompts_of, tiny_engine, tiny_folder, tiny_policy
from python_tests.rollout.test_engines import logprob_gap, scale_attention

pytestmark = pytest.mark.vllm
FAMILY = "qwen2_5_vl"


def with_one_placeholder_less(prompt: Prompt, policy: Policy) -> Prompt:
    ids = list(prompt.token_ids)
    ids.remove(policy.processor.image_token_id)
    return dataclasses.replace(prompt, token_ids=tuple(ids), position_ids=prompt.position_ids[:, 1:])


def without_pixels(prompt: Prompt, policy: Policy) -> Prompt:
    return dataclasses.replace(prompt, pixel_values=None, image_grid_thw=None, images=())


def with_long_prefix(prompt: Prompt, policy: Policy) -> Prompt:
    return dataclasses.replace(prompt, prefix_ids=(65,) * MAX_MODEL_LEN)


REFUSED = {
    "placeholders that do not fit": (with_one_placeholder_less, "has 8 image tokens where its 1 images fill 9"),
    "an image that is missing": (without_pixels, "has 9 image tokens where its 0 images fill 0"),
    "too long": (with_long_prefix, r"does not fit worker\.rollout\.max_model_len=1024; raise it"),
}


@pytest.mark.parametrize(("change", "words"), REFUSED.values(), ids=REFUSED)
def test_what_vllm_would_take_without_a_word_is_refused(change, words):
    policy = tiny_policy(FAMILY)
    jobs = [GenerationJob(change(prompts_of(policy)[0], policy), (1,))]
    with pytest.raises(UserError, match=words):
        tiny_engine("vllm", FAMILY).generate(jobs, Sampling(max_tokens=4))


@pytest.mark.parametrize("temperature", [0.001, 2.5])
def test_a_temperature_that_vllm_would_change_is_refused(temperature):
    jobs = [GenerationJob(prompts_of(tiny_policy(FAMILY))[0], (1,))]
    with pytest.raises(UserError, match=f"from 0.01 to 2, not at {temperature}"):
        tiny_engine("vllm", FAMILY).generate(jobs, Sampling(temperature=temperature))


def test_more_images_than_the_limit_are_refused_and_an_engine_without_weights_refuses_all():
    policy = tiny_policy(FAMILY)
    engine = open_engine("vllm", policy, limit_images=1)
    one, two, *_ = prompts_of(policy)
    assert len(engine.generate([GenerationJob(one, (1,))], Sampling(max_tokens=4))[0]) == 1
    with pytest.raises(UserError, match=r"2 images, more than worker\.rollout\.limit_images=1"):
        engine.generate([GenerationJob(two, (1,))], Sampling(max_tokens=4))
    engine.policy_version = -1
    with pytest.raises(RuntimeError, match="has no weights: call update_weights first"):
        engine.generate([GenerationJob(one, (1,))], Sampling(max_tokens=4))


def test_global_generators_and_threads_are_left_as_they_were():
    policy = tiny_policy("qwen2")
    jobs = [GenerationJob(prompts_of(policy)[0], (1,))]
    set_num_threads, num_threads = torch.set_num_threads, torch.get_num_threads()

    def draws(between):
        torch.manual_seed(3)
        np.random.seed(3)
        random.seed(3)
        between()
        return float(torch.rand(1)), np.random.rand(), random.random()

    used = draws(lambda: open_engine("vllm", policy).generate(jobs, Sampling(max_tokens=4)))
    assert used == draws(lambda: None)
    assert (torch.set_num_threads, torch.get_num_threads()) == (set_num_threads, num_threads)


def test_a_cache_that_outlives_its_weights_shows_in_the_gap():
    """The measure that guards every step sees it: without the reset the prompt is still read by the old weights."""
    policy = load_policy(tiny_folder(FAMILY))
    engine = open_engine("vllm", policy)
    job = GenerationJob(dataclasses.replace(prompts_of(policy)[2], prefix_ids=(70,) * 64), (1, 2))
    engine.generate([job], Sampling(max_tokens=20))
    engine._engine.reset_prefix_cache = lambda: True
    with torch.no_grad():
        scale_attention(policy)
    engine.update_weights(1, full_weights(policy))
    [stale] = engine.generate([job], Sampling(max_tokens=20))
    assert logprob_gap(policy, job, stale) > 0.1
    del engine._engine.reset_prefix_cache
    engine.update_weights(2, full_weights(policy))
    [fresh] = engine.generate([job], Sampling(max_tokens=20))
    assert logprob_gap(policy, job, fresh) < 3e-5


def test_bfloat16_agrees_to_its_rounding():
    policy = load_policy(tiny_folder(FAMILY), dtype="bfloat16")
    engine = open_engine("vllm", policy)
    job = GenerationJob(prompts_of(policy)[0], (1, 2, 3))
    [rollouts] = engine.generate([job], Sampling(max_tokens=30))
    assert logprob_gap(policy, job, rollouts) < 0.5


def test_a_folder_that_vllm_cannot_load_is_an_error_of_the_user(tmp_path):
    from diva_engine.rollout.vllm_engine import EngineModel, VllmEngine

    model = EngineModel(tmp_path, "float32", torch.device("cpu"), MAX_MODEL_LEN)
    with pytest.raises(UserError, match=f"vLLM cannot load {tmp_path}"):
        VllmEngine(model, tiny_policy("qwen2").processor, RolloutConfig())
