"""What only the native engine does; what it shares with others is in test_engines.py."""

from __future__ import annotations

import pytest
import torch

from diva_engine.policy.forward import answer_logprobs
from diva_engine.policy.model import load_policy
from diva_engine.records import AnswerTree, GenerationJob, Sampling, UserError
from diva_engine.rollout.native_engine import NativeEngine
from python_tests.rollout.engines import prompts_of, tiny_engine, tiny_folder, tiny_policy


def test_the_same_seed_gives_the_same_bits() -> None:
    engine = tiny_engine("native", "qwen2_5_vl")
    jobs = [GenerationJob(prompts_of(tiny_policy("qwen2_5_vl"))[0], (1, 2))]
    assert engine.generate(jobs, Sampling(max_tokens=30)) == engine.generate(jobs, Sampling(max_tokens=30))


def test_answers_do_not_depend_on_the_cut_into_chunks() -> None:
    policy, sampling = tiny_policy("qwen2_5_vl"), Sampling(max_tokens=30)
    jobs = [GenerationJob(prompt, (7, 8, 9)) for prompt in prompts_of(policy)]
    together = tiny_engine("native", "qwen2_5_vl").generate(jobs, sampling)
    in_chunks = NativeEngine(policy.model, policy.processor, max_batch_rows=2).generate(jobs, sampling)
    assert [[r.token_ids for r in group] for group in in_chunks] == [[r.token_ids for r in group] for group in together]


def test_the_model_is_left_in_the_mode_it_was_in() -> None:
    policy = load_policy(tiny_folder("qwen2_5_vl"))
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
    policy = load_policy(tiny_folder("qwen2"))
    policy.model.config.model_type = "mamba"
    with pytest.raises(
        UserError, match=r"does not know the decoder of model type 'mamba'.*take a model of one of these"
    ):
        NativeEngine(policy.model, policy.processor)
