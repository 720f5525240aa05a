"""verl's own registry finds diva and durian, and they are compute_advantage on every token."""

import diva_engine  # isort: skip - before verl: it lets torchvision be imported beside a CPU torch

import numpy as np
import pytest
import torch

from diva_engine.integrations import verl as integration
from diva_engine.records import UserError

core_algos = pytest.importorskip(
    "verl.trainer.ppo.core_algos", reason="verl is not installed, or does not import", exc_type=ImportError
)

LENGTHS = [3, 1, 4, 2, 4, 1]
UID = np.array(["b", "a", "b", "a", "c", "c"], dtype=object)
REWARDS = [1.0, 0.0, 0.1, 0.9, 1.0, 0.1]


@pytest.fixture(autouse=True)
def registry(monkeypatch):
    """verl's registry, as it was found."""
    monkeypatch.setattr(core_algos, "ADV_ESTIMATOR_REGISTRY", dict(core_algos.ADV_ESTIMATOR_REGISTRY))


def rewards_and_mask():
    """verl's form: the reward on the last token, padded on the right."""
    mask = (torch.arange(4)[None, :] < torch.tensor(LENGTHS)[:, None]).long()
    rewards = torch.zeros(6, 4)
    rewards[range(6), [length - 1 for length in LENGTHS]] = torch.tensor(REWARDS)
    return rewards, mask


def estimate(name, **arguments):
    rewards, mask = rewards_and_mask()
    advantages, returns = core_algos.get_adv_estimator_fn(name)(
        token_level_rewards=rewards, response_mask=mask, config=None, index=UID, **arguments
    )
    assert torch.equal(advantages, returns)
    assert (advantages[mask == 0] == 0).all()
    first = advantages[:, 0]
    assert torch.equal(advantages, first[:, None] * mask), "one value on all tokens of a rollout"
    return first


def test_verl_finds_diva_with_questions_and_levels():
    integration.register(settings={"diva": {"k": 0.3}})
    known = {"question_ids": [0, 0, 0, 0, 1, 1], "difficulty": [6.0, 5.0, 6.0, 5.0, 5.0, 5.0]}
    expected = diva_engine.compute_advantage("diva", REWARDS, UID, **known, k=0.3)
    torch.testing.assert_close(estimate("diva", **known), expected)


def test_with_verls_uid_alone_diva_takes_every_prompt_for_a_question():
    integration.register()
    with pytest.warns(UserWarning, match="every prompt is taken for a question"):
        advantage = estimate("diva")
    torch.testing.assert_close(advantage, diva_engine.compute_advantage("diva", REWARDS, UID, UID, weight="none"))


def test_the_authors_preset_reads_the_padded_matrix():
    integration.register(preset="authors")
    known = {"question_ids": [0, 0, 0, 0, 1, 1], "difficulty": [6.0, 5.0, 6.0, 5.0, 5.0, 5.0]}
    expected = diva_engine.compute_advantage(
        "diva", REWARDS, UID, **known, preset="authors", lengths=LENGTHS, max_length=4
    )
    torch.testing.assert_close(estimate("diva", **known), expected)


def test_durian_reads_verls_log_probabilities():
    integration.register(settings={"durian": {"w_perceptual": 0, "num_reasoning_groups": 2}})
    logprobs = -torch.rand(6, 4, generator=torch.Generator().manual_seed(0))
    summed = [float(row[:length].sum()) for row, length in zip(logprobs, LENGTHS, strict=True)]
    expected = diva_engine.compute_advantage(
        "durian", REWARDS, UID, logprobs=summed, w_perceptual=0, num_reasoning_groups=2
    )
    torch.testing.assert_close(estimate("durian", old_log_probs=logprobs), expected)
    with pytest.raises(UserError, match="durian needs logprobs"):
        estimate("durian")


def test_registering_twice_is_no_error_unless_the_settings_differ():
    integration.register()
    integration.register()
    with pytest.raises(ValueError, match="diva has already been registered"):
        integration.register(settings={"diva": {"k": 0.3}})
    with pytest.raises(UserError, match="settings are for diva or durian, not for grpo"):
        integration.register(settings={"grpo": {}})
