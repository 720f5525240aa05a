"""Rescue asks and credits what docs/algorithms.md says; gold is its cousin without a second generation."""

import random

import numpy as np
import pytest
import torch

from diva_engine.algorithm.difficulty import DifficultyLedger
from diva_engine.algorithm.hint_control import HintState
from diva_engine.algorithm.recipes import find_recipe, recipe_defaults
from diva_engine.algorithm.rescue_stages import even_shares
from diva_engine.records import Problem, UserError
from diva_engine.settings import build_config
from python_tests.algorithm.plan_run import PlanRun

STEPS = ("one ;", "two ;", "three ;", "so 4 ;")
PROBLEMS = [Problem(id=name, text="<image>?", answer="4", images=(b"png",), steps=STEPS) for name in "abcd"]
DEAD, LIVE, SOLVED = [0.0] * 4, [1.0, 0.0, 0.0, 1.0], [1.0] * 4


def by_question(requests):
    return {r.variant.problem.id: r for r in requests}


def test_every_question_is_probed_plainly():
    run = PlanRun("rescue", PROBLEMS)
    assert [(r.variant.key, r.num_rollouts, r.first_sample) for r in run.requests] == [
        ((name, 0), 4, 0) for name in "abcd"
    ]


def test_the_rest_goes_evenly_to_the_questions_that_are_not_solved():
    run = PlanRun("rescue", PROBLEMS).answer({"a": DEAD, "b": LIVE, "c": SOLVED, "d": DEAD})
    second = by_question(run.requests)
    assert sorted(second) == ["a", "b", "d"]
    assert sorted(r.num_rollouts for r in second.values()) == [5, 5, 6], "4 questions of 8 rollouts, 16 probes: 16 left"
    plain, dead = second["b"], second["a"]
    assert (plain.variant.index, plain.first_sample, plain.variant.answer_prefix) == (0, 4, "")
    assert dead.variant.answer_prefix == "<think>\none ;\ntwo ;\nthree ;\n", "all steps but the last"
    assert (dead.variant.index, dead.first_sample, dead.variant.text) == (1, 0, "<image>?")


def test_one_question_gets_at_most_twelve():
    run = PlanRun("rescue", PROBLEMS).answer({"a": DEAD, "b": SOLVED, "c": SOLVED, "d": SOLVED})
    assert [(r.variant.problem.id, r.num_rollouts) for r in run.requests] == [("a", 12)]


def test_when_all_are_solved_all_share():
    run = PlanRun("rescue", PROBLEMS).answer(SOLVED)
    assert sorted(r.variant.key for r in run.requests) == [(name, 0) for name in "abcd"]
    assert all(r.num_rollouts == 4 for r in run.requests)


def test_format_does_not_make_a_question_live():
    run = PlanRun("rescue", PROBLEMS).answer([0.1, 0.0, 0.1, 0.0])
    assert all(r.variant.kind == "hint" for r in run.requests)


def test_questions_without_steps_get_plain_rollouts():
    problems = [Problem(id="x", text="?", answer="4"), Problem(id="y", text="?", answer="4", steps=("so 4 ;",))]
    run = PlanRun("rescue", problems).answer(DEAD)
    assert [r.variant.kind for r in run.requests] == ["original", "original"]


@pytest.mark.parametrize(("total", "count", "most"), [(16, 3, 12), (5, 8, 12), (100, 3, 12), (7, 1, 12), (0, 4, 12)])
def test_even_shares(total, count, most):
    shares = even_shares(total, count, most)
    assert len(shares) == count
    assert max(shares) - min(shares) <= 1
    assert sum(shares) == min(total, most * count)
    assert shares == sorted(shares, reverse=True)


def test_further_plain_rollouts_join_their_group():
    run = PlanRun("rescue", PROBLEMS).answer({"a": DEAD, "b": LIVE, "c": SOLVED, "d": DEAD}).answer([1.0, 0.0] * 6)
    found = {group.variant.key: len(group.rollouts) for group in run.groups}
    assert set(found) == {("a", 0), ("b", 0), ("c", 0), ("d", 0), ("a", 1), ("d", 1)}
    assert found["a", 0] == found["c", 0] == found["d", 0] == 4
    assert sum(found.values()) == 32
    assert found["b", 0] > 4


def zscore(rewards):
    rewards = np.array(rewards)
    if rewards.max() == rewards.min():
        return np.zeros(len(rewards))
    return (rewards - rewards.mean()) / (rewards.std(ddof=1) + 1e-6)


def gain_by_hand(prefixed, plain):
    gain = np.mean(prefixed) - np.mean(plain)
    return max(0.0, gain) / (np.std([*prefixed, *plain], ddof=1) + 1e-6) if gain > 0 else 0.0


HINTED = {
    "half": [1.0, 0.0, 1.0, 0.0, 1.0, 0.0],
    "all": [1.0] * 6,
    "none": [0.0] * 6,
    "one": [0.0, 0.0, 0.9, 0.1, 0.0, 0.0],
}


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("hinted", HINTED.values(), ids=HINTED)
def test_sampled_tokens_get_their_groups_zscore_and_the_prefix_what_it_gained(hinted, normalize):
    run = PlanRun("rescue", PROBLEMS, **{"rescue.normalize_prefix": normalize, "rescue.beta": 0.5})
    run.answer({"a": DEAD, "b": LIVE, "c": SOLVED, "d": [0.1, 0.0, 0.0, 0.1]}).answer(hinted)
    credit = run.credit()
    expected = np.concatenate([zscore(group.rewards) for group in run.groups])
    np.testing.assert_allclose(credit.advantage.numpy(), expected, atol=1e-6, rtol=2e-6)
    weights = []
    for group in run.groups:
        accuracies = [score.accuracy for score in group.scores]
        is_prefixed = group.variant.index == 1
        gain = gain_by_hand(accuracies, [0.0] * 4) if is_prefixed else 0.0
        length = len(group.prompt.prefix_ids) if normalize and is_prefixed else 1
        weights.append(0.5 * len(accuracies) * gain / length)
    np.testing.assert_allclose(credit.prefix_weight.numpy(), weights, atol=1e-6, rtol=2e-6)


def test_an_always_right_prefix_has_no_advantage_but_a_weight():
    run = PlanRun("rescue", PROBLEMS[:1]).answer(DEAD).answer([1.0] * 4)
    credit = run.credit()
    assert (credit.advantage == 0).all()
    assert credit.prefix_weight[0] == 0
    assert credit.prefix_weight[1] == pytest.approx(4 * 1.0 / (np.std([0.0] * 4 + [1.0] * 4, ddof=1) + 1e-6), rel=1e-6)


def test_a_prefix_that_does_not_help_has_no_weight():
    """Plain rollouts that joined the probes may beat the hint; credit never punishes a reference."""
    ledger = DifficultyLedger(build_config({}).difficulty)
    run = PlanRun("rescue", PROBLEMS[:1], ledger).answer(DEAD).answer([0.0] * 4)
    assert run.credit().prefix_weight.tolist() == [0.0, 0.0]


def test_hints_follow_their_success_through_the_ledger():
    ledger = DifficultyLedger(build_config({}).difficulty)
    lengths = []
    for step, hinted in enumerate(([1.0] * 4, [1.0, 0.0] * 2, [0.0] * 4, [0.0] * 4)):
        run = PlanRun("rescue", PROBLEMS[:1], ledger, step).answer(DEAD)
        lengths.append(run.requests[0].variant.num_hint_steps)
        run.answer(hinted)
    assert lengths == [3, 2, 2, 3]
    assert ledger.hint(PROBLEMS[0]) == HintState(3, 1)


def test_hopeless_questions_are_left_to_plain_rollouts_for_a_while():
    ledger = DifficultyLedger(build_config({}).difficulty)
    kinds = []
    for step in range(9):
        run = PlanRun("rescue", PROBLEMS[:1], ledger, step).answer(DEAD)
        kinds.append(run.requests[0].variant.kind)
        run.answer([0.0] * 8)
        assert run.context.metrics["rescue/resting_questions"] == float(kinds[-1] == "original")
    assert kinds == ["hint"] * 3 + ["original"] * 4 + ["hint", "original"]


def test_a_hinted_success_is_not_the_questions_accuracy():
    run = PlanRun("rescue", PROBLEMS[:1]).answer(DEAD).answer([1.0] * 4)
    run.ledger.observe(run.groups, step=0)
    assert run.ledger.level(PROBLEMS[0]) == 7.0
    assert run.ledger.pass_rate.tolist() == [0.0]


def test_solved_questions_may_get_a_perturbed_variant():
    run = PlanRun("rescue", PROBLEMS, **{"rescue.perturb_solved": True}).answer(
        {"a": SOLVED, "b": LIVE, "c": DEAD, "d": SOLVED}
    )
    second = by_question(run.requests)
    assert second["a"].variant.kind in ("perturbation", "text_in_image")
    assert second["a"].variant.shift > 0
    bare = PlanRun("rescue", [Problem(id="x", text="?", answer="1")], **{"rescue.perturb_solved": True}).answer(SOLVED)
    assert [r.variant.index for r in bare.requests] == [0], "nothing to perturb"


def test_without_hints_dead_questions_get_plain_rollouts():
    run = PlanRun("rescue", PROBLEMS, **{"rescue.hints": False}).answer(DEAD)
    assert [r.variant.index for r in run.requests] == [0] * 4


def test_the_same_step_shares_out_the_same_way():
    def shares(step):
        run = PlanRun("rescue", PROBLEMS, step=step).answer({"a": DEAD, "b": LIVE, "c": SOLVED, "d": DEAD})
        return [(r.variant.key, r.num_rollouts) for r in run.requests]

    assert shares(1) == shares(1)
    assert len({tuple(shares(step)) for step in range(8)}) > 1, "the odd rollout goes to another question"


def test_the_reward_range_fades_groups_on_demand():
    rewards = {"a": [0.1, 0.0, 0.0, 0.1], "b": LIVE, "c": SOLVED, "d": SOLVED}
    plain = PlanRun("rescue", PROBLEMS).answer(rewards).answer([1.0, 0.0] * 6).credit()
    faded = PlanRun("rescue", PROBLEMS, **{"advantage.rrb": "range"}).answer(rewards).answer([1.0, 0.0] * 6).credit()
    torch.testing.assert_close(faded.advantage[:4], plain.advantage[:4] * 0.1)  # the probes of "a"
    torch.testing.assert_close(faded.prefix_weight, plain.prefix_weight)


def test_gold_teaches_dead_questions_their_steps_without_generating():
    rewards = {"a": [0.0] * 8, "b": [1.0] + [0.0] * 7, "c": [1.0] * 8, "d": [0.1] * 8}
    run = PlanRun("gold", PROBLEMS).answer(rewards)
    assert [(r.variant.key, r.num_rollouts) for r in run.requests] == [(("a", 1), 0), (("d", 1), 0)]
    assert run.requests[0].variant.answer_prefix == "<think>\none ;\ntwo ;\nthree ;\n"
    run.answer([])
    credit = run.credit()
    expected = np.concatenate([zscore(rewards[name]) for name in "abcd"])
    np.testing.assert_allclose(credit.advantage.numpy(), expected, atol=1e-6)
    assert [group.variant.key for group in run.groups] == [("a", 0), ("a", 1), ("b", 0), ("c", 0), ("d", 0), ("d", 1)]
    assert credit.prefix_weight.tolist() == [0.0, 8.0, 0.0, 0.0, 0.0, 8.0]


def test_gold_divides_by_the_prefix_on_demand():
    run = PlanRun("gold", PROBLEMS, **{"rescue.normalize_prefix": True}).answer([0.0] * 8).answer([])
    length = len(b"<think>\none ;\ntwo ;\nthree ;\n")
    assert run.credit().prefix_weight.tolist() == pytest.approx([0.0, 8 / length] * 4)


def test_in_one_stage_the_last_visit_says_who_is_hinted():
    ledger = DifficultyLedger(build_config(dict(recipe_defaults("rescue"))).difficulty)
    settings = {"rescue.dead_by": "last_visit"}
    first = PlanRun("rescue", PROBLEMS[:2], ledger, **settings)
    assert [(r.variant.key, r.num_rollouts) for r in first.requests] == [(("a", 0), 8), (("b", 0), 8)]
    first.answer({"a": [0.0] * 8, "b": [1.0, 0.0] * 4})
    ledger.observe(first.groups, step=0)
    second = PlanRun("rescue", PROBLEMS[:2], ledger, step=1, **settings)
    assert [(r.variant.key, r.num_rollouts) for r in second.requests] == [(("a", 0), 4), (("a", 1), 4), (("b", 0), 8)]
    second.answer({"a": [1.0] * 4, "b": [1.0, 0.0] * 4})
    assert ledger.hint(PROBLEMS[0]) == HintState(2)
    assert len(second.groups) == 3
    assert second.credit().prefix_weight.tolist() == [0.0, 0.0, 0.0], "the plain question is right as often by now"


@pytest.mark.parametrize("dead_by", ["probe", "last_visit"])
@pytest.mark.parametrize("seed", range(6))
def test_no_step_costs_more_than_its_budget(seed, dead_by):
    draw = random.Random(seed)
    ledger = DifficultyLedger(build_config(dict(recipe_defaults("rescue"))).difficulty)
    num = draw.randint(2, 12)
    for step in range(5):
        settings = {"worker.rollout.n": num, "rescue.dead_by": dead_by, "rescue.perturb_solved": seed % 2 == 0}
        run = PlanRun("rescue", PROBLEMS, ledger, step, **settings)
        asked: list[int] = []
        while run.groups is None:
            asked += [request.num_rollouts for request in run.requests]
            run.answer({name: draw.choice([[0.0], [1.0], [1.0, 0.0]]) * 24 for name in "abcd"})
        assert sum(asked) <= num * len(PROBLEMS)
        assert all(count > 0 for count in asked)
        assert sum(len(group.rollouts) for group in run.groups) == sum(asked)
        credit = run.credit()
        assert credit.advantage.isfinite().all()
        assert credit.prefix_weight.isfinite().all()
        assert (credit.prefix_weight >= 0).all()
        ledger.observe(run.groups, step)


NOTHING_TO_DO = {
    "no rollouts left after the probe": ("rescue", {"worker.rollout.n": 4}, r"worker.rollout.n=4 leaves nothing"),
    "no beginning to teach": ("gold", {"hint.inject": "question"}, "needs hint.inject=answer"),
}


@pytest.mark.parametrize(("name", "values", "message"), NOTHING_TO_DO.values(), ids=NOTHING_TO_DO)
def test_settings_that_leave_nothing_to_do_are_refused(name, values, message):
    with pytest.raises(UserError, match=message):
        find_recipe(name).check(build_config({**recipe_defaults(name), **values}))


def test_a_solved_question_may_be_probed_less_and_a_slip_on_it_needs_no_hint():
    ledger = DifficultyLedger(build_config(dict(recipe_defaults("rescue"))).difficulty)
    settings = {"rescue.probe_solved": 1}
    first = PlanRun("rescue", PROBLEMS, ledger, **settings).answer({"a": DEAD, "b": LIVE, "c": SOLVED, "d": SOLVED})
    first.answer([1.0] * 12)
    ledger.observe(first.groups, step=0)
    second = PlanRun("rescue", PROBLEMS, ledger, step=1, **settings)
    assert [r.num_rollouts for r in second.requests] == [4, 4, 1, 1]
    second.answer({"a": DEAD, "b": LIVE, "c": [0.0], "d": [1.0]})
    posed = by_question(second.requests)
    assert {name: r.variant.kind for name, r in posed.items()} == {"a": "hint", "b": "original", "c": "original"}
    assert (posed["c"].first_sample, sum(r.num_rollouts for r in posed.values())) == (1, 32 - 10)
