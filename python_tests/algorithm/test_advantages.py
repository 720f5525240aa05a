"""Every family member's advantage equals its formula, worked out rollout by rollout in double precision."""

import numpy as np
import pytest

from diva_engine.algorithm.recipes import find_recipe, recipe_defaults
from diva_engine.settings import build_config
from python_tests.algorithm.cases import REWARDS, as_groups

EPS = 1e-6


def zscore(rewards):
    if len(rewards) < 2 or rewards.max() == rewards.min():
        return np.zeros(len(rewards))
    return (rewards - rewards.mean()) / (rewards.std(ddof=1) + EPS)


def centred(rewards):
    return rewards - rewards.mean()


def against_the_others(rewards):
    if len(rewards) == 1:
        return np.zeros(1)
    return np.array([r - np.delete(rewards, i).mean() for i, r in enumerate(rewards)])


FORMULAS = {
    "grpo": zscore,
    "dr_grpo": centred,
    "rloo": against_the_others,
    "gspo": zscore,
    "cispo": zscore,
    "sapo": zscore,
}
FACTORS = {
    "none": lambda rewards: 1.0,
    "range": lambda rewards: rewards.max() - rewards.min(),
    "threshold": lambda rewards: 0.1 if rewards.max() < 0.15 else 1.0,
}


def credit_of(name, groups, **settings):
    config = build_config({**recipe_defaults(name), "algorithm.adv_estimator": name, **settings})
    return find_recipe(name).credit(groups, config)


@pytest.mark.parametrize("rrb", FACTORS)
@pytest.mark.parametrize("name", FORMULAS)
@pytest.mark.parametrize("rewards", REWARDS.values(), ids=REWARDS)
def test_the_advantage_is_the_formula(name, rrb, rewards):
    expected = np.concatenate([FORMULAS[name](np.array(r)) * FACTORS[rrb](np.array(r)) for r in rewards])
    credit = credit_of(name, as_groups(rewards), **{"advantage.rrb": rrb})
    np.testing.assert_allclose(credit.advantage.numpy(), expected, atol=1e-6, rtol=2e-6)
    assert credit.prefix_weight.tolist() == [0.0] * len(rewards)


@pytest.mark.parametrize("name", FORMULAS)
def test_equal_rewards_give_exactly_nothing(name):
    credit = credit_of(name, as_groups(REWARDS["all equal"] + REWARDS["all zero"] + [[0.3]]))
    assert (credit.advantage == 0).all()


def test_the_population_std_is_a_setting():
    rewards = np.array([1.0, 0.0, 0.0])
    credit = credit_of("grpo", as_groups([rewards.tolist()]), **{"advantage.std": "population"})
    np.testing.assert_allclose(credit.advantage.numpy(), centred(rewards) / (rewards.std() + EPS), rtol=2e-6)


def test_the_range_is_taken_of_the_largest_reward_possible():
    credit = credit_of("dr_grpo", as_groups([[2.0, 0.0]]), **{"advantage.rrb": "range", "advantage.r_max": 4.0})
    assert credit.advantage.tolist() == [0.5, -0.5]


def test_only_diva_rescales_by_range_unless_asked():
    chosen = {name: build_config(dict(recipe_defaults(name))).advantage.rrb for name in ("diva", *FORMULAS)}
    assert chosen.pop("diva") == "range"
    assert set(chosen.values()) == {"none"}
