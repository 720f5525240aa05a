"""Adapters: what is trained, what others are handed, what peft reads back."""

import pytest
import torch

from diva_engine.policy.forward import answer_logprobs
from diva_engine.policy.lora import adapters, add_adapters, save_adapter
from diva_engine.policy.model import load_policy
from diva_engine.policy.weights import adapter_weights, full_weights
from diva_engine.records import AnswerTree, UserError
from python_tests.models import build_tiny_model
from python_tests.prompts import make_prompt, random_image

peft = pytest.importorskip("peft")


@pytest.fixture(scope="module", params=["qwen2_5_vl", "qwen3_vl", "llama"])
def folder(request, tmp_path_factory):
    return build_tiny_model(request.param, tmp_path_factory.mktemp("model") / request.param)


def trained(folder, **options):
    """A policy whose adapters are no longer what they began as."""
    defaults = {"rank": 4, "alpha": 8.0, "target_modules": ["all-linear"], "seed": 1}
    policy = add_adapters(load_policy(folder), **(defaults | options))
    torch.manual_seed(0)
    with torch.no_grad():
        for module in adapters(policy.model).values():
            module.lora_B["default"].weight.normal_(0, 0.05)
    return policy


def logprobs(policy):
    images = [random_image(56, 56)] if policy.processor.image_processor else []
    prompt = make_prompt(policy.model, policy.processor, "How many?", images)
    return answer_logprobs(policy, [AnswerTree(prompt, ((5, 6, 7), (8, 9)))])[0].detach()


def test_adapters_begin_by_changing_nothing_and_are_drawn_from_the_seed(folder):
    plain = load_policy(folder)
    pair = [add_adapters(load_policy(folder), rank=4, alpha=8.0, target_modules=["q_proj"], seed=s) for s in (1, 1, 2)]
    assert torch.equal(logprobs(plain), logprobs(pair[0]))
    drawn = [torch.cat([w.flatten() for n, w in adapter_weights(policy) if "lora_A" in n]) for policy in pair]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_only_adapters_are_trained_and_a_frozen_tower_gets_none(folder):
    for is_frozen in (False, True):
        policy = load_policy(folder, freeze_vision_tower=is_frozen)
        policy = add_adapters(policy, rank=4, alpha=8.0, target_modules=["all-linear"], seed=1)
        moving = [name for name, p in policy.model.named_parameters() if p.requires_grad]
        assert moving
        assert all(".lora_" in name for name in moving)
        sees = policy.processor.image_processor is not None
        assert any("visual" in name for name in moving) == (sees and not is_frozen)


def test_others_are_handed_the_sums_under_the_plain_names(folder):
    policy, plain = trained(folder), load_policy(folder)
    before = logprobs(plain)
    names = list(plain.model.state_dict())
    weights = dict(full_weights(policy))
    assert list(weights) == names
    plain.model.load_state_dict(weights)
    torch.testing.assert_close(logprobs(plain), logprobs(policy), rtol=0, atol=2e-5)
    assert (logprobs(plain) - before).abs().max() > 1e-2


def test_peft_reads_the_adapter_folder(folder, tmp_path):
    policy = trained(folder, target_modules=["q_proj", "down_proj"])
    save_adapter(tmp_path, policy.lora, dict(adapter_weights(policy)))
    plain = load_policy(folder)
    wrapped = peft.PeftModel.from_pretrained(plain.model, tmp_path)
    assert torch.equal(logprobs(plain), logprobs(policy))
    assert wrapped.peft_config["default"].base_model_name_or_path == str(folder)


def test_a_layer_that_is_none_is_named(folder):
    with pytest.raises(UserError, match=r"target_modules=\['q_prj'\].*such as q_proj"):
        add_adapters(load_policy(folder), rank=4, alpha=8.0, target_modules=["q_prj"], seed=1)
