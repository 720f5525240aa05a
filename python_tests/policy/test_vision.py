"""Image features are those that the language model gets, in the order of the prompts."""

import pytest
import torch

from diva_engine.policy import vision
from diva_engine.policy.model import load_policy
from diva_engine.policy.vision import image_features
from python_tests.models import VISION_FAMILIES, build_tiny_model
from python_tests.prompts import make_prompt, random_image


@pytest.fixture(scope="module", params=VISION_FAMILIES)
def policy(request, tmp_path_factory):
    return load_policy(build_tiny_model(request.param, tmp_path_factory.mktemp("model"), hidden_size=32))


def prompts_of(policy):
    images = [[random_image(64, 96, 1)], [], [random_image(128, 64, 2), random_image(64, 64, 3)]]
    return [make_prompt(policy.model, policy.processor, "What?", found) for found in images]


def test_features_are_the_towers_after_the_merger(policy):
    prompts = prompts_of(policy)
    features, offsets = image_features(policy, prompts)
    assert offsets[0] == 0
    assert features.shape == (int(offsets[-1]), 32)
    sizes = []
    for prompt in prompts:
        if prompt.image_grid_thw is not None:
            sizes += (prompt.image_grid_thw.prod(-1) // policy.processor.merge_size**2).tolist()
    assert offsets.diff().tolist() == sizes
    assert not features.requires_grad
    with torch.no_grad():
        alone = policy.model.model.get_image_features(prompts[0].pixel_values, prompts[0].image_grid_thw)
    torch.testing.assert_close(features[: sizes[0]], alone.pooler_output[0], atol=1e-5, rtol=1e-4)


def test_the_cut_into_batches_changes_nothing(policy, monkeypatch):
    prompts = prompts_of(policy)
    together, offsets = image_features(policy, prompts)
    monkeypatch.setattr(vision, "_MAX_PATCHES", 1)
    apart, offsets_apart = image_features(policy, prompts)
    assert torch.equal(offsets, offsets_apart)
    torch.testing.assert_close(together, apart, atol=1e-5, rtol=1e-4)


def test_no_image_gives_no_feature(policy):
    features, offsets = image_features(policy, prompts_of(policy)[1:2])
    assert len(features) == 0
    assert offsets.tolist() == [0]
