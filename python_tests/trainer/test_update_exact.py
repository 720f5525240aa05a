"""One update of packed answers leaves the gradient of the same loss over single answers in transformers' own model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from diva_engine.algorithm.losses import clipped_policy_loss
from diva_engine.policy.model import load_policy
from diva_engine.records import Credit, ScoredGroup
from diva_engine.settings import build_config
from diva_engine.trainer.update import Updater
from python_tests.models import VISION_FAMILIES, build_tiny_model
from python_tests.prompts import make_prompt, random_image
from python_tests.scored import ANY_LOGPROBS, gradients_in_steps, make_group

ADVANTAGES = [1.0, -0.5, 0.25, 0.5, -1.0, 0.75]
SIZES = [(84, 112), (140, 56)]  # of the two prompts' pictures: windows of several shapes


@pytest.fixture(scope="module", params=[*VISION_FAMILIES, "qwen2"])
def folder(request, tmp_path_factory):
    return build_tiny_model(request.param, tmp_path_factory.mktemp("model"))


def groups_of(policy) -> list[ScoredGroup]:
    made = []
    for number, size in enumerate(SIZES):
        images = [random_image(*size, seed=number)] if policy.processor.image_processor else []
        prompt = make_prompt(policy.model, policy.processor, "How many?" * (1 + number), images)
        made.append(make_group([1.0, 0.0, 1.0], f"q{number}", lengths=[3, 9, 2], prompt=prompt))
    return made


def updated(policy, groups, **settings) -> dict[str, torch.Tensor]:
    """Gradients by name."""
    config = build_config({"worker.actor.optim.lr": 0.0, "worker.actor.max_grad_norm": 1e9, **ANY_LOGPROBS, **settings})
    updater = Updater(policy, clipped_policy_loss, config, num_steps=1)
    noted = gradients_in_steps(updater)
    updater.update(groups, Credit(torch.tensor(ADVANTAGES), torch.zeros(len(groups))))
    return noted[0]


def plain_loss(model, processor, groups) -> torch.Tensor:
    """-sum of advantage x log-probability over all sampled tokens; the ratio is 1, its gradient that of the latter."""
    advantages, losses, num_tokens = iter(ADVANTAGES), [], 0
    for group in groups:
        for rollout in group.rollouts:
            ids = torch.tensor([group.prompt.token_ids + rollout.token_ids])
            inputs: dict[str, Any] = {"input_ids": ids}
            if group.prompt.pixel_values is not None:
                inputs["pixel_values"] = group.prompt.pixel_values
                inputs["image_grid_thw"] = group.prompt.image_grid_thw
                inputs["mm_token_type_ids"] = (ids == processor.image_token_id).int()
            count = len(rollout.token_ids)
            logits = model(**inputs).logits[0, -count - 1 : -1]
            logits = logits.index_fill(1, torch.tensor(processor.banned_ids), float("-inf"))
            logprob = logits.log_softmax(-1).gather(1, ids[0, -count:, None])
            losses.append(-next(advantages) * logprob.sum())
            num_tokens += count
    return torch.stack(losses).sum() / num_tokens


def test_the_gradient_is_that_of_single_answers(folder) -> None:
    policy = load_policy(folder)
    groups = groups_of(policy)
    packed = updated(policy, groups)
    auto_class = AutoModelForImageTextToText if policy.processor.image_processor else AutoModelForCausalLM
    model = auto_class.from_pretrained(folder, dtype=torch.float32)
    plain_loss(model, policy.processor, groups).backward()
    plain = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert packed.keys() == plain.keys()
    for name, gradient in plain.items():
        scale = max(1.0, float(gradient.norm()))
        torch.testing.assert_close(packed[name] / scale, gradient / scale, rtol=0, atol=1e-5, msg=name)


@pytest.mark.parametrize("max_tokens", [100_000, 80], ids=["one micro-batch", "one a prompt"])
def test_the_vision_tower_sees_each_picture_once(folder, max_tokens: int) -> None:
    policy = load_policy(folder)
    if policy.processor.image_processor is None:
        pytest.skip("a text model has no tower")
    groups = groups_of(policy)
    seen: list[int] = []
    policy.model.model.visual.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    updated(policy, groups, **{"worker.actor.micro_batch_tokens": max_tokens})
    patches = [len(group.prompt.pixel_values) for group in groups]
    assert seen == ([sum(patches)] if max_tokens > 1000 else patches)
