"""The ledger follows the accuracy of a question's own rollouts."""

import pytest
import torch

from diva_engine.algorithm.difficulty import DifficultyLedger, accuracy_by_question, answered_variants
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
    assert accuracy_by_question(answered_variants([*GROUPS, make_group([], "c")]), over) == expected


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


def assert_equal(first, second):
    """The same rows, whatever their order."""
    left, right = first.state_dict(), second.state_dict()
    assert left.pop("effects") == right.pop("effects")
    order = [left["ids"].index(id) for id in right["ids"]]
    assert sorted(left.pop("ids")) == sorted(right.pop("ids"))
    for name in left:
        torch.testing.assert_close(left[name][order], right[name], rtol=0, atol=0, equal_nan=True)


def test_equal_groups_in_any_order_leave_equal_rows():
    """As ranks gather them: accuracies that are no binary fractions, whose plain sums depend on the order."""
    thirds = [[0.1, 0.7, 0.2], [0.3, 0.6, 0.9], [1 / 3, 0.1, 0.2]]
    groups = [make_group(r, "abc"[i], accuracies=r) for i, r in enumerate(thirds)]
    groups += [make_group(r, "abc"[i], index=2, kind="paraphrase", accuracies=r[::-1]) for i, r in enumerate(thirds)]
    ledgers = []
    for order in (groups, groups[::-1], groups[1::2] + groups[::2]):
        ledgers.append(DifficultyLedger(DifficultyConfig()))
        ledgers[-1].effects.observe = lambda *_: None  # its running mean is of a sequence
        for step in range(3):
            ledgers[-1].observe(order, step)
    assert_equal(ledgers[0], ledgers[1])
    assert_equal(ledgers[0], ledgers[2])


def test_a_level_is_read_after_each_change():
    """Levels are read from a copy on the host, which every change of the rows makes anew."""
    ledger = DifficultyLedger(DifficultyConfig())
    a, b = (make_group([0.0, 0.0], id) for id in "ab")
    seen = []
    for step, groups in enumerate(([a], [b], [a, b])):
        ledger.observe(groups, step)
        seen.append([ledger.level(group.variant.problem) for group in (a, b)])
    assert seen == [[7.0, 5.0], [7.0, 7.0], [9.0, 9.0]]
    other = DifficultyLedger(DifficultyConfig())
    assert other.level(a.variant.problem) == 5.0
    other.load_state_dict(ledger.state_dict())
    assert other.level(a.variant.problem) == 9.0
    other.warm_start({"q": {"difficulty": 2.0}})
    assert [other.level(Problem(id=id, text="?", answer="1")) for id in "aq"] == [5.0, 2.0]


def test_a_warm_start_takes_what_another_run_has_found():
    settings = DifficultyConfig(low=2.0)
    ledger = DifficultyLedger(settings)
    found = {"difficulty": 1.5, "pass_rate": 0.8, "visits": 4, "last_step": 90, "hint_steps": 2, "visual_entropy": 1.25}
    ledger.warm_start({"a": found, "b": {"difficulty": 6.5}})
    a, b = (Problem(id=id, text="?", answer="1", difficulty=3.0) for id in "ab")
    assert (ledger.level(a), ledger.level(b)) == (2.0, 6.5), "what was found beats the record; the settings bound it"
    assert ledger.hint(a) == HintState(2)
    assert ledger.last_step.tolist() == [-1, -1]
    assert not ledger.lacks_visual_entropy(a, step=0)
    assert ledger.lacks_visual_entropy(b, step=0)
    ledger.observe([make_group([1.0, 0.0], "a"), make_group([1.0, 1.0], "b")], step=0)
    assert ledger.pass_rate.tolist() == [pytest.approx(0.65), 1.0], "the average goes on where there was one"
    assert ledger.visits.tolist() == [5, 1]
    assert ledger.difficulty.dtype == torch.float32
    assert ledger.visits.dtype == torch.int64


@pytest.mark.gpu
def test_the_same_on_cuda():
    ledgers = [DifficultyLedger(DifficultyConfig(), device) for device in ("cpu", "cuda")]
    for ledger in ledgers:
        for step in range(3):
            ledger.observe(GROUPS[step % 2 :], step)
    assert ledgers[1].difficulty.is_cuda
    assert_equal(*ledgers)


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
    assert_equal(first, second)
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


def test_a_state_from_before_a_column_was_kept_is_taken():
    ledger = DifficultyLedger(DifficultyConfig())
    ledger.observe(GROUPS, step=0)
    state = {name: value for name, value in ledger.state_dict().items() if name not in ("rest", "solved_in_row")}
    other = DifficultyLedger(DifficultyConfig())
    other.load_state_dict(state)
    assert other.rest.tolist() == other.solved_in_row.tolist() == [0, 0]
    assert other.difficulty.tolist() == ledger.difficulty.tolist()
