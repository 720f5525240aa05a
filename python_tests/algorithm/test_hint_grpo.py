"""Hint-GRPO: which hints are shown, which group is trained on, and what the lazy ladder saves."""

import pytest

from diva_engine.algorithm.hint_ladder import select_group
from diva_engine.config import HintGrpoConfig
from python_tests.algorithm.plan_run import PlanRun, numbered_problems
from python_tests.scored import make_group

STEPS = tuple(f"step {i} ;" for i in range(7))
SIX = STEPS[:6]

#         steps of the record, groups -> steps shown by each
LADDERS = {
    "six steps, three groups": (6, 3, [0, 2, 4]),
    "six steps, two groups": (6, 2, [0, 3]),
    "five steps, three groups": (5, 3, [0, 1, 3]),
    "seven steps, four groups": (7, 4, [0, 1, 3, 5]),
    "two steps, three groups": (2, 3, [0, 1]),
    "one step": (1, 3, [0]),
    "no steps": (0, 3, [0]),
    "one group is plain GRPO": (6, 1, [0]),
}


@pytest.mark.parametrize(("num_steps", "groups", "shown"), LADDERS.values(), ids=LADDERS)
def test_group_i_is_shown_the_first_steps(num_steps, groups, shown):
    problems = numbered_problems(1, steps=STEPS[:num_steps])
    run = PlanRun("hint_grpo", problems, **{"hint_grpo.groups": groups})
    variants = [request.variant for request in run.requests]
    assert [variant.num_hint_steps for variant in variants] == shown
    assert variants[0].index == 0
    assert variants[0].answer_prefix == ""
    for variant in variants[1:]:
        assert variant.answer_prefix == "<think>\n" + "\n".join(STEPS[: variant.num_hint_steps]) + "\n"
        assert variant.text == "<image>?"
    assert len({variant.key for variant in variants}) == len(variants), "each group draws its own answers"


def test_the_hint_may_stand_in_the_question():
    run = PlanRun("hint_grpo", numbered_problems(1, steps=SIX), **{"hint.inject": "question"})
    assert [request.variant.answer_prefix for request in run.requests] == [""] * 3
    assert "step 1 ;" in run.requests[1].variant.text


def rungs(*rewards):
    return [make_group(found, index=i, kind="hint" if i else "original") for i, found in enumerate(rewards)]


DEAD, LIVE, SOLVED, FORM = [0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.1, 0.0]
#         groups' rewards, -> chosen by first_positive, by fewest_unequal, by first_positive of rewards
SELECTIONS = {
    "unhinted works": ([LIVE, LIVE, SOLVED], 0, 0, 0),
    "first hint works": ([DEAD, LIVE, SOLVED], 1, 1, 1),
    "only the longest works": ([DEAD, DEAD, LIVE], 2, 2, 2),
    "nothing works": ([DEAD, DEAD, DEAD], 0, 0, 0),
    "always right without a hint": ([SOLVED, LIVE, LIVE], 0, 1, 0),
    "the first hint gives it away": ([DEAD, SOLVED, LIVE], 1, 2, 1),
    "all equal": ([DEAD, SOLVED, SOLVED], 1, 0, 1),
    "form alone": ([FORM, LIVE, SOLVED], 1, 0, 0),
    "form throughout": ([[0.1, 0.1], LIVE, SOLVED], 1, 1, 0),
}


@pytest.mark.parametrize(("rewards", "positive", "unequal", "by_reward"), SELECTIONS.values(), ids=SELECTIONS)
def test_one_group_is_trained_on(rewards, positive, unequal, by_reward):
    groups = rungs(*rewards)
    for expected, settings in (
        (positive, HintGrpoConfig()),
        (unequal, HintGrpoConfig(select="fewest_unequal")),
        (by_reward, HintGrpoConfig(positive_by="reward")),
    ):
        assert select_group(groups[::-1], settings) is groups[expected]


def test_all_groups_are_generated_at_once_and_one_of_each_question_is_trained_on():
    run = PlanRun("hint_grpo", numbered_problems(2, steps=SIX), **{"worker.rollout.n": 2})
    assert [(r.variant.key, r.num_rollouts) for r in run.requests] == [
        ((f"q{q}", i), 2) for q in range(2) for i in range(3)
    ]
    run.answer({"q0": DEAD, "q1": LIVE})
    assert [group.variant.key for group in run.groups] == [("q0", 0), ("q1", 0)]
    credit = run.credit()
    assert credit.advantage.tolist() == pytest.approx([0.0, 0.0, 0.7071, -0.7071], abs=1e-4)
    assert credit.prefix_weight.tolist() == [0.0, 0.0]
    assert run.context.metrics == {
        "hint_grpo/live_groups": 1,
        "hint_grpo/tokens_per_live_group": 2 * 3 * 2 * 2,
        "hint_grpo/rollout_share": 1.0,
        "hint_grpo/hint_steps": 0.0,
    }


def test_hint_tokens_carry_no_loss():
    run = PlanRun("hint_grpo", numbered_problems(1, steps=SIX), **{"hint_grpo.ladder": "lazy", "worker.rollout.n": 2})
    run.answer(DEAD).answer(LIVE)
    assert run.groups[0].prompt.prefix_ids
    assert run.credit().prefix_weight.tolist() == [0.0]


def test_the_lazy_ladder_climbs_only_where_all_failed():
    problems = [*numbered_problems(3, steps=SIX), *numbered_problems(4)[3:]]
    run = PlanRun("hint_grpo", problems, **{"hint_grpo.ladder": "lazy", "worker.rollout.n": 2})
    assert [r.variant.key for r in run.requests] == [("q0", 0), ("q1", 0), ("q2", 0), ("q3", 0)]
    run.answer({"q0": LIVE, "q1": DEAD, "q2": FORM, "q3": DEAD})
    assert [r.variant.key for r in run.requests] == [("q1", 1), ("q2", 1)], "q3 has no steps; form is no success"
    run.answer({"q1": LIVE, "q2": DEAD})
    assert [r.variant.key for r in run.requests] == [("q2", 2)]
    run.answer(DEAD)
    assert [group.variant.key for group in run.groups] == [("q0", 0), ("q1", 1), ("q2", 0), ("q3", 0)]
    assert run.context.metrics["hint_grpo/rollout_share"] == 7 / 10
    assert run.context.metrics["hint_grpo/tokens_per_live_group"] == 7 * 2 * 2 / 3


def test_a_hinted_success_is_not_the_questions_accuracy():
    run = PlanRun("hint_grpo", numbered_problems(1, steps=SIX), **{"hint_grpo.ladder": "lazy", "worker.rollout.n": 2})
    run.answer(DEAD).answer(SOLVED)
    run.ledger.observe(run.groups, step=0)
    assert run.ledger.visits.tolist() == [], "the hinted group alone says nothing of the question"
