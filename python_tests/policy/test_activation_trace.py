"""What the trace counts on fake tensors is what a real forward saves."""

from __future__ import annotations

import tempfile
from typing import Any

import pytest
import torch

from diva_engine.policy.activation_trace import text_layer_bytes, vision_block_bytes
from diva_engine.policy.forward import answer_logprobs
from diva_engine.policy.model import load_policy
from diva_engine.records import AnswerTree, Prompt
from python_tests.models import FAMILIES, VISION_FAMILIES, build_tiny_model
from python_tests.prompts import make_prompt, random_image


def saved_bytes(forward: Any, parameters: Any) -> int:
    kept: dict[int, tuple[int, torch.Tensor]] = {}
    weights = {parameter.untyped_storage()._cdata for parameter in parameters}

    def count(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = (storage.nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        output = forward()
    del output
    return sum(num_bytes for num_bytes, _ in kept.values())


def text_trees() -> list[AnswerTree]:
    prompt = Prompt(token_ids=(5,) * 100, position_ids=torch.arange(100).expand(3, -1))
    return [AnswerTree(prompt, ((7,) * 32,) * 4), AnswerTree(prompt, ((7,) * 9, (8,) * 30))]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_text_layer_saves_what_is_traced(family: str) -> None:
    saved = []
    for num_layers in (1, 2):
        policy = load_policy(build_tiny_model(family, tempfile.mkdtemp(), num_layers=num_layers))
        trees = text_trees()
        saved.append(saved_bytes(lambda p=policy, t=trees: answer_logprobs(p, t), policy.model.parameters()))
    traced = text_layer_bytes(policy.model.config, text_trees(), torch.float32)
    assert traced == pytest.approx(saved[1] - saved[0], rel=0.05)


@pytest.mark.parametrize("family", VISION_FAMILIES)
def test_the_vision_tower_saves_what_is_traced(family: str) -> None:
    policy = load_policy(build_tiny_model(family, tempfile.mkdtemp()))
    prompt = make_prompt(policy.model, policy.processor, "?", [random_image(224, 224)])
    visual = policy.model.model.visual
    patches = len(prompt.pixel_values)

    def run(num_blocks: int) -> int:
        blocks = visual.blocks
        visual.blocks = blocks[:num_blocks]
        try:
            return saved_bytes(lambda: visual(prompt.pixel_values, prompt.image_grid_thw), visual.parameters())
        finally:
            visual.blocks = blocks

    traced = vision_block_bytes(policy.model.config, patches, 1, torch.float32)
    assert traced == pytest.approx(run(2) - run(1), rel=0.1)
