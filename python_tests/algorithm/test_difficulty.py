"""The ledger follows the accuracy of a question's own rollouts."""

import pytest
import torch

from diva_engine.algorithm.difficulty import DifficultyLedger, accuracy_by_question
from diva_engine.algorithm.hint_control import HintState
from diva_engine.config import DifficultyConfig
from diva_engine.records import Problem, UserError
from python_tests.scored import make_group

CONTINUOUS = {
    "all wrong": (5.0, 0.0, 7.0),
    "half": (5.0, 0.5, 5.0),
    "all right": (5.0, 1.0, 3.0),
    "top": (8.5, 0.0, 9.0),
    "floor": (1.5, 1.0, 1.0),
}
STEPPED = {
    "none": (5.0, 0.0, 7.0),
    "few": (5.0, 0.3, 6.0),
    "half": (5.0, 0.5, 5.0),
    "most": (5.0, 0.7, 4.0),
    "all": (5.0, 0.9, 3.0),
    "bound": (9.0, 0.0, 9.0),
}


def level_after(before, accuracy, **settings):
    """The level of a question that starts at `before` and of whose ten rollouts the share `accuracy` is right."""
    ledger = DifficultyLedger(DifficultyConfig(initial=before, **settings))
    group = make_group([float(i < round(10 * accuracy)) for i in range(10)])
    ledger.observe([group], step=0)
    return ledger.level(group.variant.problem)


@pytest.mark.parametrize(("before", "accuracy", "after"), CONTINUOUS.values(), ids=CONTINUOUS)
def test_the_papers_rule(before, accuracy, after):
    assert level_after(before, accuracy) == pytest.approx(after)


@pytest.mark.parametrize(("before", "accuracy", "after"), STEPPED.values(), ids=STEPPED)
def test_the_stepped_rule_with_its_dead_branch_mended(before, accuracy, after):
    assert level_after(before, accuracy, rule="steps") == pytest.approx(after)


GROUPS = [
    make_group([0.0, 0.0, 0.0, 0.0], "a"),
    make_group([1.0, 1.0, 1.0, 1.0], "a", index=1, kind="hint"),
    make_group([1.0, 0.1], "b"),
]


@pytest.mark.parametrize(
    ("over", "expected"), [("all", {"a": 0.5, "b": 0.5}), ("originals", {"a": 0.0, "b": 0.5}), ("variants", {"a": 1.0})]
)
def test_the_setting_says_whose_accuracy_counts(over, expected):
    """With one variant the pooled accuracy has a fixed point: never right and always right when hinted give 0.5."""
    assert accuracy_by_question(GROUPS, over) == expected


def test_observe_updates_level_pass_rate_visits_and_step():
    ledger = DifficultyLedger(DifficultyConfig(accuracy_over="originals"))
    problem = Problem(id="a", text="?", answer="1")
    assert ledger.level(problem) == 5.0
    ledger.observe(GROUPS, step=3)
    assert ledger.level(problem) == 7.0
    ledger.observe([make_group([1.0, 1.0], "a")], step=8)
    assert ledger.level(problem) == 5.0
    assert ledger.pass_rate.tolist() == [0.5, 0.5]
    assert ledger.visits.tolist() == [2, 1]
    assert ledger.last_step.tolist() == [8, 3]


def test_a_records_own_level_is_where_it_starts():
    ledger = DifficultyLedger(DifficultyConfig())
    assert ledger.level(Problem(id="x", text="?", answer="1", difficulty=2.0)) == 2.0
    assert ledger.level(Problem(id="y", text="?", answer="1", difficulty=12.0)) == 9.0


def test_state_is_restored_exactly():
    first = DifficultyLedger(DifficultyConfig())
    first.observe(GROUPS, step=0)
    problem = GROUPS[0].variant.problem
    first.set_hint(problem, HintState(3, 2))
    first.set_visual_entropy(problem, 1.25, step=4)
    second = DifficultyLedger(DifficultyConfig())
    second.load_state_dict(first.state_dict())
    for ledger in (first, second):
        ledger.observe([make_group([1.0, 0.0], "c"), make_group([0.0, 0.0], "a")], step=1)
    left, right = first.state_dict(), second.state_dict()
    assert left.pop("ids") == right.pop("ids")
    for name in left:
        torch.testing.assert_close(left[name], right[name], rtol=0, atol=0, equal_nan=True)
    assert second.hint(problem) == HintState(3, 2)
    assert second.visual_entropy_of(problem) == 1.25


def test_pictures_are_looked_at_once_or_every_so_many_steps():
    ledger = DifficultyLedger(DifficultyConfig())
    problem = Problem(id="a", text="?", answer="1")
    assert ledger.lacks_visual_entropy(problem, step=0)
    ledger.set_visual_entropy(problem, 0.5, step=2)
    assert not ledger.lacks_visual_entropy(problem, step=100)
    assert not ledger.lacks_visual_entropy(problem, step=6, refresh_every=5)
    assert ledger.lacks_visual_entropy(problem, step=7, refresh_every=5)


def test_what_a_plan_notes_of_a_question_does_not_count_as_a_visit():
    ledger = DifficultyLedger(DifficultyConfig())
    ledger.set_hint(GROUPS[0].variant.problem, HintState(3))
    ledger.observe(GROUPS, step=0)
    assert ledger.pass_rate.tolist() == [0.5, 0.5]
    assert ledger.visits.tolist() == [1, 1]


def test_a_damaged_state_is_refused():
    state = DifficultyLedger(DifficultyConfig()).state_dict() | {"ids": ["a"]}
    with pytest.raises(UserError, match="has 0 rows for 1 questions"):
        DifficultyLedger(DifficultyConfig()).load_state_dict(state)
