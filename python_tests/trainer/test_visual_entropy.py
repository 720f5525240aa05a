"""The perceptual score is measured once a question, kept in the ledger, and reaches every group of the question."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from diva_engine.algorithm.difficulty import DifficultyLedger
from diva_engine.config import DifficultyConfig, DurianConfig
from diva_engine.ops import histogram_entropy
from diva_engine.ops.spectral_entropy import spectral_entropy_reference
from diva_engine.policy.model import load_policy
from diva_engine.policy.vision import image_features
from diva_engine.trainer.visual_entropy import VisualEntropy
from python_tests.models import build_tiny_model
from python_tests.prompts import make_prompt, random_image
from python_tests.scored import make_group


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return load_policy(build_tiny_model("qwen2_5_vl", tmp_path_factory.mktemp("model"), hidden_size=32))


@pytest.fixture
def groups(policy):
    """A noisy picture, an even one, two at once, none; and a hinted variant of the first question."""
    even = Image.new("RGB", (112, 112), (90, 90, 90))
    images = [[random_image(112, 112, 1)], [even], [random_image(112, 56, 2), even], []]
    prompts = [make_prompt(policy.model, policy.processor, "?", found) for found in images]
    made = [make_group([1.0, 0.0], f"q{i}", prompt=prompt) for i, prompt in enumerate(prompts)]
    return [*made, make_group([1.0, 0.0], "q0", index=1, kind="hint", prompt=replace(prompts[0], prefix_ids=(5,)))]


def entropies(groups):
    return [group.visual_entropy for group in groups]


def new_ledger():
    return DifficultyLedger(DifficultyConfig())


def test_the_score_is_the_mean_spectral_entropy_of_the_questions_pictures(policy, groups):
    filled, metrics = VisualEntropy(policy, new_ledger(), DurianConfig())(groups, step=0)
    by_image = spectral_entropy_reference(*image_features(policy, [g.prompt for g in groups[:4]])).tolist()
    expected = [by_image[0], by_image[1], (by_image[2] + by_image[3]) / 2, math.nan, by_image[0]]
    assert entropies(filled) == pytest.approx(expected, rel=1e-3, abs=1e-3, nan_ok=True)
    assert expected[0] > expected[1]
    assert metrics["durian/questions_looked_at"] == 4
    assert metrics["durian/visual_entropy"] == pytest.approx(np.nanmean(expected), rel=1e-3)


def test_grey_levels_need_no_model(groups):
    filled, _ = VisualEntropy(None, new_ledger(), DurianConfig(entropy="histogram"))(groups, step=0)
    noisy = histogram_entropy([torch.from_numpy(np.array(groups[0].prompt.images[0]))]).item()
    assert entropies(filled)[:2] == pytest.approx([noisy, 0.0], abs=1e-6)
    assert math.isnan(filled[3].visual_entropy)


def test_questions_are_looked_at_once_or_every_so_many_steps(policy, groups):
    ledger = new_ledger()
    looked = [
        VisualEntropy(policy, ledger, DurianConfig(refresh_steps=3))(groups, step)[1]["durian/questions_looked_at"]
        for step in range(5)
    ]
    assert looked == [4, 0, 0, 4, 0]


def test_the_ledger_hands_it_over_a_resume(policy, groups):
    first, second = new_ledger(), new_ledger()
    before, _ = VisualEntropy(policy, first, DurianConfig())(groups, step=0)
    second.load_state_dict(first.state_dict())
    after, metrics = VisualEntropy(policy, second, DurianConfig())(groups, step=1)
    assert entropies(after)[:3] == entropies(before)[:3]
    assert metrics["durian/questions_looked_at"] == 0


def test_questions_without_a_picture_are_noted_and_not_looked_at_again(policy, groups):
    ledger = new_ledger()
    for looked in (1, 0):
        filled, metrics = VisualEntropy(policy, ledger, DurianConfig())(groups[3:4], step=0)
        assert math.isnan(filled[0].visual_entropy)
        assert metrics == {"durian/questions_looked_at": looked}
    assert VisualEntropy(policy, ledger, DurianConfig())([], step=0)[0] == []
