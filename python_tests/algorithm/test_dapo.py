"""DAPO: live groups only, drawn anew within a bound; a price on overlong answers."""

import numpy as np
import pytest

from diva_engine.algorithm.plans import is_live
from diva_engine.algorithm.recipes import find_recipe, recipe_defaults
from diva_engine.settings import build_config
from python_tests.algorithm.cases import REWARDS, as_groups
from python_tests.algorithm.plan_run import PlanRun, numbered_problems
from python_tests.scored import make_group

LIVE, DEAD, SOLVED = [1.0, 0.0] * 4, [0.0] * 8, [1.0] * 8


class Pool:
    """Questions beyond the step's own, handed out in order."""

    def __init__(self, problems):
        self.problems = list(problems)
        self.asked = []

    def __call__(self, count):
        self.asked.append(count)
        drawn, self.problems = self.problems[:count], self.problems[count:]
        return drawn


def start(num=4, pool=20, **settings):
    problems = numbered_problems(num + pool)
    draw_more = Pool(problems[num:])
    return PlanRun("dapo", problems[:num], draw_more=draw_more, **settings), draw_more


def test_a_batch_of_live_groups_is_enough():
    run, pool = start()
    run.answer(LIVE)
    assert [group.variant.problem.id for group in run.groups] == ["q0", "q1", "q2", "q3"]
    assert pool.asked == []
    assert run.context.metrics["dapo/draws"] == 1


def test_dead_and_solved_groups_are_replaced_by_further_questions():
    run, pool = start()
    run.answer({"q0": DEAD, "q1": LIVE, "q2": SOLVED, "q3": LIVE})
    assert pool.asked == [4], "two are missing, half of those asked are live"
    assert [r.variant.problem.id for r in run.requests] == ["q4", "q5", "q6", "q7"]
    run.answer({"q4": DEAD, "q5": DEAD, "q6": LIVE, "q7": DEAD})
    assert pool.asked == [4, 3], "one is missing, three of eight are live"
    run.answer(LIVE)
    assert [group.variant.problem.id for group in run.groups] == ["q1", "q3", "q6", "q8"]
    assert run.context.metrics == {
        "dapo/draws": 3,
        "dapo/questions_asked": 11,
        "dapo/live_groups": 6,
        "dapo/short_of_live_groups": 0,
    }


def test_the_bound_ends_the_search_and_says_so():
    run, pool = start(**{"dapo.max_draws": 3})
    run.answer(DEAD).answer(DEAD).answer({"q8": LIVE, "q9": DEAD, "q10": DEAD, "q11": DEAD})
    assert [group.variant.problem.id for group in run.groups] == ["q8"]
    assert pool.asked == [4, 4], "no question is drawn that would not be asked"
    assert run.context.metrics["dapo/short_of_live_groups"] == 3


def test_the_end_of_the_data_ends_the_search():
    run, _ = start(pool=2)
    run.answer(DEAD)
    assert len(run.requests) == 2
    run.answer(DEAD)
    assert run.groups == []
    assert run.credit().advantage.tolist() == []


@pytest.mark.parametrize(("by", "is_found"), [("reward", True), ("accuracy", False)])
def test_what_makes_a_group_live_is_a_setting(by, is_found):
    group = make_group([0.1, 0.0, 0.1])
    assert is_live(group, by) is is_found
    run, _ = start(num=1, pool=0, **{"dapo.live_by": by})
    run.answer([0.1, 0.0] * 4)
    assert bool(run.groups) is is_found


# The last 40 tokens of 100 are priced: nothing at 60, half at 80, all from 100 on.
LENGTHS = {60: 0.0, 61: 0.025, 80: 0.5, 99: 0.975, 100: 1.0, 1: 0.0}


@pytest.mark.parametrize(("length", "share"), LENGTHS.items())
def test_the_overlong_penalty_rises_over_the_last_tokens(length, share):
    settings = {"data.max_response_length": 100, "dapo.overlong_share": 0.4, "dapo.overlong_penalty": 0.5}
    config = build_config({**recipe_defaults("dapo"), **settings})
    groups = [make_group([1.0, 0.0], lengths=[length, 10])]
    advantage = find_recipe("dapo").credit(groups, config).advantage
    rewards = np.array([1.0 - 0.5 * share, 0.0])
    expected = (rewards - rewards.mean()) / (rewards.std(ddof=1) + 1e-6)
    np.testing.assert_allclose(advantage.numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("rewards", REWARDS.values(), ids=REWARDS)
def test_the_advantage_is_grpos_of_the_shaped_rewards(rewards):
    groups = as_groups(rewards)
    config = build_config({**recipe_defaults("dapo"), "data.max_response_length": 8, "dapo.overlong_share": 0.5})
    advantage = find_recipe("dapo").credit(groups, config).advantage
    expected = []
    for group in groups:
        lengths = np.array([len(rollout.token_ids) for rollout in group.rollouts])
        shaped = np.array(group.rewards) - np.clip((lengths - 4) / 4, 0, 1)
        spread = shaped.std(ddof=1) if len(shaped) > 1 else 0.0
        expected.append((shaped - shaped.mean()) / (spread + 1e-6) if np.ptp(shaped) else np.zeros(len(shaped)))
    np.testing.assert_allclose(advantage.numpy(), np.concatenate(expected), atol=1e-6, rtol=3e-6)


def test_without_a_buffer_nothing_is_priced():
    config = build_config({**recipe_defaults("dapo"), "data.max_response_length": 2, "dapo.overlong_share": 0.0})
    groups = [make_group([1.0, 1.0])]
    assert find_recipe("dapo").credit(groups, config).advantage.tolist() == [0.0, 0.0]
