"""The divergence from the starting weights: nothing at the start, the op's estimators after, as loss or as reward."""

import pytest
import torch

from diva_engine.algorithm.losses import clipped_policy_loss
from diva_engine.policy.model import load_policy
from diva_engine.records import AnswerTree, Credit
from diva_engine.settings import build_config
from diva_engine.trainer.reference import KlReward, divergence, frozen_logprobs
from diva_engine.trainer.update import Updater
from python_tests.models import build_tiny_model
from python_tests.prompts import make_prompt, random_image
from python_tests.scored import ANY_LOGPROBS, make_group


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return build_tiny_model("qwen2_5_vl", tmp_path_factory.mktemp("model"), hidden_size=32)


@pytest.fixture
def start(folder):
    return load_policy(folder)


@pytest.fixture
def moved(folder):
    """A policy away from the starting weights."""
    policy = load_policy(folder)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=draw)
    return policy


@pytest.fixture
def groups(start):
    prompts = [
        make_prompt(start.model, start.processor, "How many?", [random_image(56, 56, seed=i)], prefix=prefix)
        for i, prefix in enumerate(("", "ab"))
    ]
    return [make_group([1.0, 0.0, 1.0], f"q{i}", lengths=[3, 5, 2], prompt=p) for i, p in enumerate(prompts)]


ESTIMATORS = {"k1": lambda d: -d, "k2": lambda d: d * d / 2, "k3": lambda d: torch.exp(d) - 1 - d}


@pytest.mark.parametrize("kind", ESTIMATORS)
def test_estimators(kind):
    d = torch.linspace(-2, 2, 9, dtype=torch.float64)
    torch.testing.assert_close(divergence(d, kind), ESTIMATORS[kind](d))


def logprobs(policy, groups, micro_batch_tokens=16384):
    trees = [AnswerTree(g.prompt, tuple(r.token_ids for r in g.rollouts)) for g in groups]
    return frozen_logprobs(policy, trees, max_tokens=micro_batch_tokens, temperature=1.0)


def test_frozen_logprobs_come_by_tree_whatever_the_cut(moved, groups):
    whole, cut = logprobs(moved, groups), logprobs(moved, groups, micro_batch_tokens=1)
    assert [len(found) for found in whole] == [10, 10]
    assert not any(found.requires_grad for found in whole)
    for one, other in zip(whole, cut, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


def updated(policy, groups, credit, reference, **settings):
    config = build_config({"worker.actor.optim.lr": 0.0, "worker.actor.max_grad_norm": 1e9, **ANY_LOGPROBS, **settings})
    updater = Updater(policy, clipped_policy_loss, config, num_steps=1, reference=reference)
    return updater.update(groups, credit)


@pytest.mark.parametrize("kind", ESTIMATORS)
def test_the_loss_has_the_divergence_of_every_answer(moved, start, groups, kind):
    """Answers without credit are trained too: they may drift as well."""
    credit = Credit(torch.tensor([1.0, -0.5, 0.0, 0.0, 0.0, 0.0]), torch.zeros(2))
    settings = {"algorithm.kl_penalty": kind, "algorithm.kl_coef": 0.3}
    metrics = updated(moved, groups, credit, start, **settings)
    d = torch.cat(logprobs(start, groups)) - torch.cat(logprobs(moved, groups))
    expected = -(3 * 1.0 - 5 * 0.5) / 20 + 0.3 * ESTIMATORS[kind](d.double()).sum().item() / 20
    assert metrics["actor/loss"] == pytest.approx(expected, rel=1e-4)
    assert metrics["actor/kl_ref"] == pytest.approx(ESTIMATORS[kind](d.double()).mean().item(), rel=1e-4)
    assert metrics["actor/trained_rollouts"] == 6


def test_at_the_starting_weights_there_is_no_divergence(start, folder, groups):
    credit = Credit(torch.zeros(6), torch.zeros(2))
    metrics = updated(start, groups, credit, load_policy(folder), **{"algorithm.kl_coef": 1.0})
    assert metrics["actor/kl_ref"] == 0.0
    assert metrics["actor/grad_norm"] == 0.0


@pytest.mark.parametrize("kind", ESTIMATORS)
def test_the_divergence_comes_off_the_reward(start, groups, kind):
    """Summed over the answer's tokens, against the log-probabilities with which it was sampled (-1 each here)."""
    config = build_config({"algorithm.kl_penalty": kind, "algorithm.kl_coef": 0.1})
    shaped, metrics = KlReward(start, config)(groups, step=0)
    seen = []
    for group, before, ref in zip(shaped, groups, logprobs(start, groups), strict=True):
        sums = [ESTIMATORS[kind](part.double() + 1.0).sum().item() for part in ref.split([3, 5, 2])]
        expected = [reward - 0.1 * kl for reward, kl in zip(before.rewards, sums, strict=True)]
        assert group.rewards == pytest.approx(expected, rel=1e-4, abs=1e-5)
        assert [s.accuracy for s in group.scores] == [s.accuracy for s in before.scores]
        seen += sums
    assert metrics["reward/kl"] == pytest.approx(sum(seen) / 6, rel=1e-4)


def test_a_step_without_answers_is_left_alone(start):
    config = build_config({})
    assert KlReward(start, config)([], step=0) == ([], {})
