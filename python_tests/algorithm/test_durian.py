"""Durian's groups and its three-way sum equal the formulas, worked out question by question in double precision."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from diva_engine.algorithm.difficulty_groups import perceptual_groups, quantile_groups, reasoning_scores
from diva_engine.algorithm.recipes import find_recipe, recipe_defaults
from diva_engine.records import Rollout
from diva_engine.settings import build_config
from python_tests.algorithm.cases import REWARDS, as_groups
from python_tests.algorithm.plan_run import PlanRun, numbered_problems
from python_tests.scored import make_group

NAN = float("nan")
#       entropies -> groups; 25th and 75th percentiles by linear interpolation
PERCEPTUAL = {
    "five": ([1.0, 2.0, 3.0, 4.0, 5.0], [0, 0, 1, 2, 2]),
    "four, between values": ([1.0, 2.0, 3.0, 4.0], [0, 1, 1, 2]),
    "unsorted": ([4.0, 1.0, 3.0, 2.0, 5.0], [2, 0, 1, 0, 2]),
    "all equal go to the easy side": ([2.0] * 6, [0] * 6),
    "ties at the low percentile go below": ([1.0, 1.0, 1.0, 2.0, 9.0], [0, 0, 0, 2, 2]),
    "ties at the high percentile go above": ([1.0, 2.0, 5.0, 5.0, 5.0], [0, 0, 2, 2, 2]),
    "without a picture in the middle": ([NAN, 1.0, 2.0, 3.0, NAN], [1, 0, 1, 2, 1]),
    "no picture at all": ([NAN, NAN], [1, 1]),
    "one": ([3.0], [0]),
    "none": ([], []),
}


@pytest.mark.parametrize(("entropies", "groups"), PERCEPTUAL.values(), ids=PERCEPTUAL)
def test_perceptual_groups(entropies, groups):
    assert perceptual_groups(torch.tensor(entropies)).tolist() == groups


#       scores, number of groups -> groups
QUANTILES = {
    "as many as groups": ([3.0, 1.0, 2.0, 0.0], 4, [3, 1, 2, 0]),
    "halves": ([3.0, 1.0, 2.0, 0.0], 2, [1, 0, 1, 0]),
    "uneven": ([0.0, 1.0, 2.0, 3.0, 4.0], 2, [0, 0, 0, 1, 1]),
    "fewer than groups": ([-5.0, -1.0], 12, [0, 6]),
    "ties share the lowest one's group": ([1.0, 1.0, 1.0, 2.0], 4, [0, 0, 0, 3]),
    "a tie across the border goes down": ([0.0, 1.0, 1.0, 2.0], 2, [0, 0, 0, 1]),
    "all equal": ([1.0] * 24, 12, [0] * 24),
    "none": ([], 12, []),
}


@pytest.mark.parametrize(("scores", "count", "groups"), QUANTILES.values(), ids=QUANTILES)
def test_quantile_groups(scores, count, groups):
    assert quantile_groups(torch.tensor(scores), count).tolist() == groups


@pytest.mark.parametrize("num", range(1, 41))
def test_quantile_groups_without_ties_are_even(num):
    groups = quantile_groups(torch.randperm(num, generator=torch.Generator().manual_seed(num)).double(), 12)
    sizes = torch.bincount(groups, minlength=12)
    assert len(sizes) == 12
    assert sizes.max() - sizes.min() <= 1


def test_the_reasoning_score_is_the_mean_summed_logprob():
    group = make_group([1.0, 0.0])
    logprobs = [(-1.0, -0.5, -0.25), (-2.0,)]
    rollouts = tuple(Rollout((5,) * len(found), found, "stop", "", 0) for found in logprobs)
    assert reasoning_scores([replace(group, rollouts=rollouts)]).tolist() == [(-1.75 - 2.0) / 2]


def as_durian_groups(rewards, seed=0):
    """Groups of questions that differ in what there is to see, some without a picture, and in their confidence."""
    draw = random.Random(seed)
    groups = []
    for group in as_groups(rewards):
        rollouts = []
        for rollout in group.rollouts:
            logprobs = tuple(-draw.uniform(0.01, 3) for _ in rollout.token_ids)
            rollouts.append(replace(rollout, logprobs=logprobs))
        entropy = draw.choice([NAN, *(draw.uniform(0, 5) for _ in range(5))])
        groups.append(replace(group, rollouts=tuple(rollouts), visual_entropy=entropy))
    return groups


def advantage_by_hand(groups, weights, num_reasoning=12, eps=1e-6):
    """The three parts in double precision. `bins` of a part: for each question, those whose rewards share its std."""
    entropies = np.array([np.float32(group.visual_entropy) for group in groups], dtype=np.float64)
    scores = np.array([np.mean([np.sum(rollout.logprobs) for rollout in group.rollouts]) for group in groups])
    known = entropies[~np.isnan(entropies)]
    low, high = np.percentile(known, [25, 75]) if len(known) else (0, 0)
    seen = [1 if np.isnan(e) else 0 if e <= low else 2 if e >= high else 1 for e in entropies]
    reasoned = [int(np.sum(scores < score)) * num_reasoning // len(groups) for score in scores]
    own = list(range(len(groups)))
    total = []
    for i, group in enumerate(groups):
        rewards = np.array(group.rewards)
        parts = np.zeros(len(rewards))
        for weight, bins in zip(weights, (own, seen, reasoned), strict=True):
            shared = np.concatenate([np.array(g.rewards) for g, b in zip(groups, bins, strict=True) if b == bins[i]])
            if len(shared) > 1 and np.ptp(shared) > 0:
                parts += weight * (rewards - rewards.mean()) / (shared.std(ddof=1) + eps)
        total.append(parts)
    return np.concatenate(total)


WEIGHTS = {
    "the paper's": (0.6, 0.2, 0.2),
    "its other": (0.4, 0.3, 0.3),
    "perceptual half alone": (0.6, 0.4, 0.0),
    "reasoning half alone": (0.6, 0.0, 0.4),
    "GRPO": (1.0, 0.0, 0.0),
}


def credit_of(groups, weights=(0.6, 0.2, 0.2), name="durian", **settings):
    named = dict(zip(("durian.w_original", "durian.w_perceptual", "durian.w_reasoning"), weights, strict=True))
    config = build_config({**recipe_defaults(name), "algorithm.adv_estimator": name, **named, **settings})
    return find_recipe(name).credit(groups, config)


@pytest.mark.parametrize("weights", WEIGHTS.values(), ids=WEIGHTS)
@pytest.mark.parametrize("rewards", REWARDS.values(), ids=REWARDS)
def test_the_advantage_is_the_three_way_sum(rewards, weights):
    groups = as_durian_groups(rewards)
    credit = credit_of(groups, weights)
    expected = advantage_by_hand(groups, weights)
    np.testing.assert_allclose(credit.advantage.numpy(), expected, atol=1e-6, rtol=4e-6)
    assert credit.prefix_weight.tolist() == [0.0] * len(groups)


@pytest.mark.parametrize("seed", range(4))
def test_many_questions_fill_all_groups(seed):
    draw = random.Random(seed)
    rewards = [[float(draw.random() < 0.4) for _ in range(draw.randint(1, 9))] for _ in range(50)]
    groups = as_durian_groups(rewards, seed)
    np.testing.assert_allclose(
        credit_of(groups).advantage.numpy(), advantage_by_hand(groups, (0.6, 0.2, 0.2)), atol=1e-6, rtol=4e-6
    )


def test_without_its_halves_it_is_grpo_bit_for_bit():
    groups = as_durian_groups(REWARDS["ragged"])
    grpo = find_recipe("grpo").credit(groups, build_config({}))
    assert torch.equal(credit_of(groups, (1.0, 0.0, 0.0)).advantage, grpo.advantage)


def test_a_nearly_solved_question_is_no_longer_blown_up():
    """One wrong of sixteen: GRPO gives it -3.75; its difficulty group's std is larger, so Durian gives less."""
    rewards = [[1.0] * 15 + [0.0], [1.0, 0.0] * 8, [0.0] * 8 + [1.0] * 8]
    groups = [replace(group, visual_entropy=1.0) for group in as_groups(rewards)]
    advantage = credit_of(groups, **{"durian.num_reasoning_groups": 1}).advantage
    shared = 0.9375 / np.std(np.concatenate(rewards), ddof=1)
    assert advantage[15].item() == pytest.approx(-0.6 * 3.75 - 0.4 * shared, rel=1e-4)
    assert -3.75 < advantage[15].item() < -2


def test_the_pictures_are_looked_at_only_where_they_count():
    def needs(name, **settings):
        return find_recipe(name).needs_visual_entropy(build_config({**recipe_defaults(name), **settings}))

    assert needs("durian")
    assert needs("durian_dapo")
    assert not needs("durian", **{"durian.w_perceptual": 0.0})
    assert not needs("grpo")
    assert not needs("rescue")
    assert needs("rescue", **{"rescue.shared_std": True})


def test_on_dapo_it_asks_and_rewards_as_dapo_does():
    problems = numbered_problems(4)
    plain = PlanRun("durian", problems[:2]).answer([0.0] * 8)
    assert [len(group.rollouts) for group in plain.groups] == [8, 8]
    run = PlanRun("durian_dapo", problems[:2], draw_more=lambda count: problems[2:][:count])
    run.answer({"q0": [0.0] * 8, "q1": [1.0, 0.0] * 4})
    assert [r.variant.problem.id for r in run.requests] == ["q2", "q3"]
    settings = {"data.max_response_length": 2, "dapo.overlong_share": 0.5}
    groups = as_durian_groups([[1.0, 0.0, 0.0, 1.0]])
    long = np.array([float(len(rollout.token_ids) > 1) for rollout in groups[0].rollouts])
    shaped = replace(
        groups[0],
        scores=tuple(replace(s, reward=s.reward - x) for s, x in zip(groups[0].scores, long, strict=True)),
    )
    found = credit_of(groups, name="durian_dapo", **settings).advantage.numpy()
    np.testing.assert_allclose(found, advantage_by_hand([shaped], (0.6, 0.2, 0.2)), atol=1e-6)
    assert recipe_defaults("durian_dapo")["worker.actor.clip_ratio_high"] == 0.28


def test_rescue_may_share_the_std():
    rewards = {"q0": [0.0] * 4, "q1": [1.0, 0.0, 0.0, 1.0]}
    run = PlanRun("rescue", numbered_problems(2, steps=("a", "b")), **{"rescue.shared_std": True})
    run.answer(rewards).answer([1.0, 0.0] * 2)
    expected = advantage_by_hand(run.groups, (0.6, 0.2, 0.2))
    np.testing.assert_allclose(run.credit().advantage.numpy(), expected, atol=1e-6)
