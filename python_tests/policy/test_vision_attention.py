"""Windows that attend together give what each gives alone; the tower gives what transformers' own gives."""

from __future__ import annotations

import tempfile

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForImageTextToText

from diva_engine.policy.model import load_policy
from diva_engine.policy.vision_attention import attend_windows
from python_tests.models import VISION_FAMILIES, build_tiny_model
from python_tests.prompts import make_prompt, random_image

WINDOWS = {
    "one": [9],
    "equal": [4, 4, 4],
    "cut at the edges": [16, 8, 16, 8, 4, 2],
    "each its own": [5, 1, 7, 3],
}


@pytest.mark.parametrize("case", WINDOWS)
def test_each_window_sees_itself(case: str) -> None:
    lengths = WINDOWS[case]
    draw = torch.Generator().manual_seed(0)
    states = [torch.randn(sum(lengths), 3, 8, generator=draw).requires_grad_() for _ in range(3)]
    together = attend_windows(*states, lengths, 0.3)
    alone = torch.cat(
        [
            F.scaled_dot_product_attention(*(part.transpose(0, 1) for part in window), scale=0.3).transpose(0, 1)
            for window in zip(*(s.split(lengths) for s in states), strict=True)
        ]
    )
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-6)
    weights = torch.randn(together.shape, generator=draw)
    found = torch.autograd.grad((together * weights).sum(), states)
    for gradient, expected in zip(found, torch.autograd.grad((alone * weights).sum(), states), strict=True):
        torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("attention", ["sdpa", "flash_attention_2"])
@pytest.mark.parametrize("family", VISION_FAMILIES)
def test_the_tower_is_transformers(family: str, attention: str) -> None:
    """flash_attention_2 by its definition, which stands on the CPU where its kernel stands on a GPU."""
    folder = build_tiny_model(family, tempfile.mkdtemp())
    policy = load_policy(folder, attn_implementation=attention)
    original = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).model.visual
    images = [random_image(196, 140, seed=1), random_image(84, 224, seed=2)]
    prompt = make_prompt(policy.model, policy.processor, "What?", images)
    found = policy.model.model.visual(prompt.pixel_values, prompt.image_grid_thw).pooler_output
    expected = original(prompt.pixel_values, prompt.image_grid_thw).pooler_output
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
