"""Plans ask what the papers ask; credits equal values worked out by hand or in double precision."""

import math

import numpy as np
import pytest
import torch

from diva_engine.algorithm.advantages import group_zscore, prompt_offsets, question_offsets
from diva_engine.algorithm.difficulty import DifficultyLedger
from diva_engine.algorithm.plans import PlanContext
from diva_engine.algorithm.recipes import RECIPES, find_recipe, recipe_defaults
from diva_engine.ops.diva_advantage import diva_advantage_reference
from diva_engine.records import Problem, UserError
from diva_engine.settings import build_config, load_config
from python_tests.scored import answered, make_group

PROBLEMS = [
    Problem(id=name, text="<image>?", answer="1", paraphrases=("<image>!",), steps=("a", "b")) for name in "xyz"
]


def first_stage(name, step=0, **settings):
    config = build_config({**recipe_defaults(name), "algorithm.adv_estimator": name, **settings})
    context = PlanContext(config, DifficultyLedger(config.difficulty), step)
    return next(find_recipe(name).plan(PROBLEMS, context)), config


def test_grpo_asks_each_question_once():
    requests, _ = first_stage("grpo", **{"worker.rollout.n": 6})
    assert [(r.variant.key, r.num_rollouts) for r in requests] == [(("x", 0), 6), (("y", 0), 6), (("z", 0), 6)]


def test_diva_asks_originals_and_variants_of_each_question_together():
    requests, _ = first_stage("diva", **{"variants.num": 2})
    assert [r.variant.key for r in requests] == [(name, i) for name in "xyz" for i in range(3)]
    assert [r.variant.kind for r in requests][::3] == ["original"] * 3


def test_variants_depend_on_seed_step_and_question_alone():
    def texts(**settings):
        return [r.variant for r in first_stage("diva", **settings)[0]]

    assert texts() == texts()
    assert texts() != texts(step=1) or texts() != texts(step=2)
    config = build_config({"algorithm.adv_estimator": "diva"})
    context = PlanContext(config, DifficultyLedger(config.difficulty), 0)
    alone = [r.variant for r in next(find_recipe("diva").plan(PROBLEMS[1:2], context))]
    assert alone == texts()[2:4], "a question's variants do not depend on the step's other questions"


@pytest.mark.parametrize("name", RECIPES)
def test_a_plan_changes_nothing_before_it_has_asked(name):
    """The loop runs the next step's plan that far, to encode its prompts in time."""
    config = build_config({**recipe_defaults(name), "algorithm.adv_estimator": name})
    ledger = DifficultyLedger(config.difficulty)
    ledger.observe([make_group([0.0, 0.0], problem.id) for problem in PROBLEMS[:2]], step=0)
    before = repr(ledger.state_dict())
    context = PlanContext(config, ledger, step=1)
    assert next(find_recipe(name).plan(PROBLEMS, context))
    assert repr(ledger.state_dict()) == before
    assert (context.metrics, context.notes) == ({}, [])


def finish(name, answer):
    """Runs a recipe's plan on PROBLEMS, stage by stage; returns its groups and its config."""
    config = build_config({**recipe_defaults(name), "algorithm.adv_estimator": name})
    run = find_recipe(name).plan(PROBLEMS, PlanContext(config, DifficultyLedger(config.difficulty), 0))
    requests = next(run)
    for _ in range(20):
        try:
            requests = run.send(answer(requests))
        except StopIteration as done:
            return done.value, config
    raise AssertionError(f"the plan of {name} does not end")


@pytest.mark.parametrize("name", RECIPES)
def test_a_plan_returns_groups_that_it_was_sent(name):
    groups, _ = finish(name, lambda requests: [answered(r, ([1.0, 0.0] * 8)[: r.num_rollouts]) for r in requests])
    assert {group.variant.problem.id for group in groups} == {"x", "y", "z"}


@pytest.mark.parametrize("name", RECIPES)
def test_a_plan_does_without_questions(name):
    """All of a step's prompts may be unreadable."""
    groups, config = finish(name, lambda requests: [])
    assert groups == []
    assert find_recipe(name).credit(groups, config).advantage.tolist() == []


def test_an_unknown_recipe_names_the_nearest():
    with pytest.raises(UserError, match=r"did you mean dr_grpo\?"):
        find_recipe("dr_gpro")


ZSCORES = {
    "two": ([1.0, 0.0], [math.sqrt(0.5), -math.sqrt(0.5)]),
    "one right of four": ([1.0, 0.0, 0.0, 0.0], [1.5, -0.5, -0.5, -0.5]),
    "all equal": ([0.9] * 7, [0.0] * 7),
    "alone": ([1.0], [0.0]),
    "signed": ([-1.0, 1.0, 0.0], [-1.0, 1.0, 0.0]),
}


@pytest.mark.parametrize(("rewards", "expected"), ZSCORES.values(), ids=ZSCORES)
def test_group_zscore(rewards, expected):
    found = group_zscore(torch.tensor(rewards), torch.tensor([0, len(rewards)]))
    assert found.tolist() == pytest.approx(expected, abs=1e-5)


def test_groups_are_ragged_and_apart():
    groups = [make_group([1.0, 0.0]), make_group([0.5] * 3, "b"), make_group([0.0, 0.0, 0.9], "c")]
    credit = find_recipe("grpo").credit(groups, build_config({}))
    expected = [0.7071, -0.7071, 0, 0, 0, -0.57735, -0.57735, 1.1547]
    assert credit.advantage.tolist() == pytest.approx(expected, abs=1e-4)
    assert credit.prefix_weight.tolist() == [0, 0, 0]


def test_offsets_follow_groups_and_questions():
    groups = [make_group([1.0, 0.0], "a"), make_group([1.0], "a", index=1), make_group([0.0] * 3, "b")]
    assert prompt_offsets(groups).tolist() == [0, 2, 3, 6]
    assert question_offsets(groups).tolist() == [0, 2, 3]
    with pytest.raises(ValueError, match="must stand together"):
        question_offsets([groups[0], groups[2], groups[1]])


def diva_by_hand(groups, k=0.1, eps=1e-6):
    """Steps 3 to 6 of docs/algorithms.md in double precision, one rollout at a time."""
    rows = [(g.variant.problem.id, i, g.variant.difficulty, r) for i, g in enumerate(groups) for r in g.rewards]

    def zscore(rewards, r):
        rewards = np.array(rewards)
        if len(rewards) < 2 or rewards.max() == rewards.min():
            return 0.0
        return (r - rewards.mean()) / (rewards.std(ddof=1) + eps)

    def span(rewards):
        return max(rewards) - min(rewards)

    local_rewards = [[r for q, i, d, r in rows if i == row[1]] for row in rows]
    global_rewards = [[r for q, i, d, r in rows if q == row[0]] for row in rows]
    local = np.array([zscore(rewards, row[3]) for rewards, row in zip(local_rewards, rows, strict=True)])
    globally = np.array([zscore(rewards, row[3]) for rewards, row in zip(global_rewards, rows, strict=True)])
    local = (local - local.mean()) / (local.std(ddof=1) + eps)
    globally = (globally - globally.mean()) / (globally.std(ddof=1) + eps)
    for n, (question, _, difficulty, _) in enumerate(rows):
        levels = [g.variant.difficulty for g in groups if g.variant.problem.id == question]
        globally[n] *= math.exp(k * (difficulty - np.mean(levels)) * np.sign(globally[n]))
    return local * [span(x) for x in local_rewards] + globally * [span(x) for x in global_rewards]


def test_diva_credit_is_local_plus_weighted_global():
    groups = [
        make_group([1.0, 0.1, 0.0, 1.0], "a", difficulty=7.0),
        make_group([1.0, 1.0, 1.0, 0.1], "a", index=1, kind="hint", difficulty=4.0),
        make_group([0.0, 0.0, 0.0], "b", difficulty=5.0),
        make_group([0.1, 0.0, 1.0], "b", index=1, kind="paraphrase", difficulty=5.0),
        make_group([1.0, 1.0], "c", difficulty=2.0),
    ]
    credit = find_recipe("diva").credit(groups, build_config(dict(recipe_defaults("diva"))))
    assert credit.advantage.tolist() == pytest.approx(diva_by_hand(groups).tolist(), abs=1e-5)
    assert credit.prefix_weight.tolist() == [0.0] * 5


ABLATIONS = {  # each is one setting
    "no variants": ("variants.num=0", {"k": 0.0}),  # the one prompt is as hard as the mean
    "no weighting": ("advantage.weight=none", {"weight": "none"}),
    "no rescaling": ("advantage.rrb=none", {"rrb": "none"}),
    "no balance": ("advantage.balance=global_only", {"balance": "none", "w_local": 0.0}),
}


@pytest.mark.parametrize(("setting", "changed"), ABLATIONS.values(), ids=ABLATIONS)
def test_every_ablation_of_diva_is_one_setting(setting, changed):
    config = load_config(["algorithm=diva", setting], recipe_defaults)
    groups = [make_group([1.0, 0.1, 0.0, 0.0], "a", difficulty=3.0), make_group([0.9, 1.0, 0.1, 0.1], "b")]
    if config.variants.num:
        groups.insert(1, make_group([1.0, 1.0, 0.9, 0.0], "a", index=1, kind="hint", difficulty=1.0))
    offsets = [0, 4, 8, 12] if config.variants.num else [0, 4, 8]
    questions = [0, 2, 3] if config.variants.num else [0, 1, 2]
    expected = diva_advantage_reference(
        torch.tensor([reward for group in groups for reward in group.rewards]),
        torch.tensor(offsets),
        torch.tensor(questions),
        torch.tensor([group.variant.difficulty for group in groups]),
        **{"rrb": "range", "weight": "global", "balance": "sequences", "k": 0.1} | changed,
    )
    advantage = find_recipe("diva").credit(groups, config).advantage
    torch.testing.assert_close(advantage, expected.advantage, rtol=1e-5, atol=1e-6)
    whole = find_recipe("diva").credit(groups, load_config(["algorithm=diva"], recipe_defaults)).advantage
    if config.variants.num:
        assert not torch.allclose(advantage, whole), "and it makes a difference"
