"""What other trainers get is the recipes' credit, whatever the order of the rollouts and the kind of their ids."""

import random
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

import diva_engine
from diva_engine.algorithm.compute_advantage import RULES
from diva_engine.algorithm.recipes import find_recipe, recipe_defaults
from diva_engine.records import UserError
from diva_engine.settings import build_config
from python_tests.scored import make_group

MAX_LENGTH = 12
SETTINGS = {
    "as preset": {},
    "population std": {"std": "population"},
    "rescaled by range": {"rrb": "range", "r_max": 2.0},
    "other difficulty weight": {"k": 0.4, "weight": "both", "w_local": 0.5},
    "other weights of the std": {"w_original": 0.4, "w_perceptual": 0.6, "w_reasoning": 0.0},
    "few groups of reasoning": {"num_reasoning_groups": 3, "w_perceptual": 0.0},
}
CASES = [
    (name, case) for name, rule in RULES.items() for case in SETTINGS if SETTINGS[case].keys() <= rule.settings.keys()
]


def step_groups(seed=0):
    """Six questions of one to four prompts of one to five rollouts, each question's prompts together."""
    draw = random.Random(seed)
    groups = []
    for question in range(6):
        for index in range(1 + question % 4):
            size = draw.randint(1, 5)
            rewards = [draw.choice((0.0, 0.1, 0.9, 1.0)) for _ in range(size)]
            lengths = [draw.randint(1, MAX_LENGTH) for _ in range(size)]
            group = make_group(rewards, f"q{question}", index, difficulty=draw.uniform(1, 9), lengths=lengths)
            entropy = float("nan") if question == 2 else draw.uniform(0, 4)
            groups.append(replace(group, rollouts=with_logprobs(group, draw), visual_entropy=entropy))
    return groups


def with_logprobs(group, draw):
    return tuple(replace(r, logprobs=tuple(-draw.random() for _ in r.token_ids)) for r in group.rollouts)


def flat(groups):
    """The arguments of compute_advantage, a list each, in the order of the groups."""
    rollouts = [(group, place) for group in groups for place in range(len(group.rollouts))]
    return {
        "rewards": [group.rewards[place] for group, place in rollouts],
        "prompt_ids": [group.variant.key for group, _ in rollouts],
        "question_ids": [group.variant.problem.id for group, _ in rollouts],
        "difficulty": [group.variant.difficulty for group, _ in rollouts],
        "lengths": [len(group.rollouts[place].token_ids) for group, place in rollouts],
        "visual_entropy": [group.visual_entropy for group, _ in rollouts],
        "logprobs": [sum(group.rollouts[place].logprobs) for group, place in rollouts],
    }


def shuffled(arguments, seed):
    order = list(range(len(arguments["rewards"])))
    random.Random(seed).shuffle(order)
    return order, {name: [values[i] for i in order] for name, values in arguments.items()}


def recipe_credit(name, groups, preset="paper", **dotted):
    maximum = {"data.max_response_length": MAX_LENGTH}
    config = build_config({**recipe_defaults(name, preset), "algorithm.adv_estimator": name, **maximum, **dotted})
    return find_recipe(name).credit(groups, config).advantage


@pytest.mark.parametrize(("name", "case"), CASES)
def test_shuffled_rollouts_get_the_recipes_credit(name, case):
    groups, settings = step_groups(), SETTINGS[case]
    expected = recipe_credit(name, groups, **{RULES[name].settings[key]: value for key, value in settings.items()})
    assert expected.abs().max() > 0.1
    for seed in range(3):
        order, arguments = shuffled(flat(groups), seed)
        advantage = diva_engine.compute_advantage(name, **arguments, **settings)
        assert advantage.dtype == torch.float32
        torch.testing.assert_close(advantage, expected[order], rtol=1e-5, atol=1e-6)


def test_the_authors_preset_is_the_authors_recipe():
    groups = step_groups()
    expected = recipe_credit("diva", groups, preset="authors")
    order, arguments = shuffled(flat(groups), 1)
    advantage = diva_engine.compute_advantage("diva", **arguments, preset="authors", max_length=MAX_LENGTH)
    torch.testing.assert_close(advantage, expected[order], rtol=1e-5, atol=1e-6)
    assert (advantage - diva_engine.compute_advantage("diva", **arguments)).abs().max() > 0.1
    same = {"preset": "authors", "rrb": "range", "balance": "sequences"}
    torch.testing.assert_close(
        diva_engine.compute_advantage("diva", **arguments, **same), diva_engine.compute_advantage("diva", **arguments)
    )


ID_KINDS = {
    "texts": lambda numbers: [f"id {n}" for n in numbers],
    "whole numbers": list,
    "tuples": lambda numbers: [("id", n) for n in numbers],
    "a tuple of them": tuple,
    "an array": np.array,
    "an array of texts": lambda numbers: np.array([f"id {n}" for n in numbers], dtype=object),
    "numpy scalars": lambda numbers: [np.int64(n) for n in numbers],
    "rows of an array": lambda numbers: np.array([[n, n + 1] for n in numbers]),
    "a tensor": torch.tensor,
    "tensors of one number": lambda numbers: [torch.tensor(n) for n in numbers],
    "token ids, a tensor a rollout": lambda numbers: [torch.tensor([n] * (n + 1)) for n in numbers],
    "rows of a tensor": lambda numbers: torch.tensor([[n, 7] for n in numbers]),
}


@pytest.mark.parametrize("kind", ID_KINDS.values(), ids=ID_KINDS)
def test_ids_may_be_anything_that_can_be_compared(kind):
    rewards = [1.0, 0.0, 0.5, 1.0, 0.0, 0.0, 1.0, 0.0]
    prompts, questions = [3, 0, 3, 1, 0, 1, 2, 2], [1, 0, 1, 0, 0, 0, 1, 1]
    levels = [float(prompt) for prompt in prompts]
    plain = diva_engine.compute_advantage("diva", rewards, prompts, questions, levels)
    assert plain.abs().sum() > 1
    asked = diva_engine.compute_advantage(
        "diva", np.array(rewards), kind(prompts), kind(questions), torch.tensor(levels, dtype=torch.float64)
    )
    assert asked.tolist() == plain.tolist()


def test_values_worked_out_by_hand():
    advantage = diva_engine.compute_advantage("dr_grpo", [1.0, 3.0, 0.0, 5.0], ["a", "b", "a", "b"])
    assert advantage.tolist() == [0.5, -1.0, -0.5, 1.0]


def test_no_rollouts_have_no_advantages():
    for name in RULES:
        nothing = dict.fromkeys(("question_ids", "difficulty", "visual_entropy", "logprobs"), ())
        assert diva_engine.compute_advantage(name, [], [], **nothing).shape == (0,)


GIVEN = {"rewards": [1.0, 0.0, 1.0], "prompt_ids": ["a", "a", "b"], "question_ids": [0, 0, 0]}
LEVELS = {"difficulty": [5.0, 5.0, 6.0]}
REFUSED = {
    "no such algorithm": ("dapo", {}, "has no algorithm 'dapo'; take one of grpo, "),
    "no such preset": ("grpo", {"preset": "foo"}, "preset=foo is none; take one of paper, authors"),
    "preset of another": (
        "grpo",
        {"preset": "authors"},
        "preset=authors is not known for algorithm=grpo, only for diva",
    ),
    "setting of another": ("grpo", {"k": 0.1}, "k is not a setting of grpo's advantage; it has rrb, r_max, std, eps"),
    "value out of range": ("diva", {"k": -1.0, **LEVELS}, "advantage.k=-1.0 is out of range"),
    "choice unknown": ("diva", {"rrb": "foo", **LEVELS}, "range, threshold, none"),
    "too few prompts": ("grpo", {"prompt_ids": ["a", "a"]}, "prompt_ids has 2 ids for 3 rewards: give one a rollout"),
    "too few questions": ("diva", {"question_ids": [0]}, "question_ids has 1 ids for 3 rewards"),
    "no questions": ("diva", {"question_ids": None, **LEVELS}, "give question_ids, one a rollout"),
    "no levels": ("diva", {}, "diva needs difficulty, the level of each rollout's variant; or set weight='none'"),
    "two levels": ("diva", {"difficulty": [5, 6, 6]}, "equal within a prompt, but prompt 'a' has 5 and 6"),
    "no level": ("diva", {"difficulty": [5, 5, float("nan")]}, "difficulty holds a number that is not finite"),
    "too few levels": ("diva", {"difficulty": [5, 5]}, "difficulty has the shape [2], but there are 3 rollouts"),
    "levels of text": ("diva", {"difficulty": ["5", "5", "6"]}, "difficulty must hold one number a rollout"),
    "prompt under two questions": (
        "diva",
        {"question_ids": [0, 1, 1]},
        "prompt 'a' stands under the questions 0 and 1",
    ),
    "id without hash": ("grpo", {"prompt_ids": [[1], [1], [2]]}, "prompt_ids[0] is a list, which has no hash"),
    "id that is NaN": ("grpo", {"prompt_ids": [1.0, float("nan"), 2.0]}, "prompt_ids[1] is NaN"),
    "no lengths": ("diva", {"preset": "authors", **LEVELS}, "diva needs lengths, the tokens of each rollout"),
    "no width": ("diva", {"preset": "authors", "lengths": [1, 2, 3], **LEVELS}, "diva needs max_length"),
    "too long": (
        "diva",
        {"preset": "authors", "lengths": [1, 2, 3], "max_length": 2, **LEVELS},
        "a rollout has 3 tokens, more than max_length=2",
    ),
    "no entropies": (
        "durian",
        {},
        "durian needs visual_entropy, in nats, NaN without a picture; or set w_perceptual=0",
    ),
    "no log-probabilities": ("durian", {"w_perceptual": 0}, "durian needs logprobs"),
    "a matrix": ("grpo", {"rewards": [[1.0, 0.0, 1.0]]}, "rewards has the shape [1, 3]: give one number a rollout"),
    "reward that is none": ("grpo", {"rewards": [1.0, float("nan"), 0.0]}, "rewards[1] is nan; leave out"),
    "gradient": ("grpo", {"rewards": torch.ones(3, requires_grad=True)}, "pass rewards.detach()"),
}


@pytest.mark.parametrize(("name", "changes", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_missing_or_wrong_is_said_in_words(name, changes, message):
    with pytest.raises(UserError) as error:
        diva_engine.compute_advantage(name, **{**GIVEN, **changes})
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_importing_the_package_loads_neither_torch_nor_the_ops():
    lines = (
        "import sys, diva_engine",
        "assert not {'torch', 'transformers', 'diva_engine.ops'} & sys.modules.keys()",
        "diva_engine.compute_advantage",
        "assert 'diva_engine.ops' in sys.modules",
        "assert 'transformers' not in sys.modules",
    )
    subprocess.run([sys.executable, "-c", "\n".join(lines)], check=True)
    with pytest.raises(AttributeError, match="has no attribute 'compute_advantages'"):
        _ = diva_engine.compute_advantages


@pytest.mark.gpu
@pytest.mark.parametrize("name", RULES)
def test_rewards_on_cuda_get_the_cpus_advantages_there(name):
    _, arguments = shuffled(flat(step_groups()), 0)
    expected = diva_engine.compute_advantage(name, **arguments)
    advantage = diva_engine.compute_advantage(
        name, **{**arguments, "rewards": torch.tensor(arguments["rewards"]).cuda()}
    )
    assert advantage.is_cuda
    torch.testing.assert_close(advantage.cpu(), expected, rtol=1e-5, atol=1e-6)
