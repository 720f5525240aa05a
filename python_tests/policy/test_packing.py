"""Rows of shared-prompt packing: what they hold, how they are cut into micro-batches, how long trees are split."""

from __future__ import annotations

import pytest
import torch

from diva_engine.policy.packing import pack_trees, plan_micro_batches, row_length, split_trees
from diva_engine.records import AnswerTree, Prompt


def text_tree(
    prompt_length: int, branch_lengths: list[int], prefix_length: int = 0, train_prefix: bool = False
) -> AnswerTree:
    prompt = Prompt(
        token_ids=tuple(range(prompt_length)),
        position_ids=torch.arange(prompt_length).expand(3, -1),
        prefix_ids=tuple(range(50, 50 + prefix_length)),
    )
    branches = tuple(tuple(range(100 * i, 100 * i + n)) for i, n in enumerate(branch_lengths, start=1))
    return AnswerTree(prompt, branches, train_prefix)


def test_a_row_is_the_trunk_then_each_branch_without_its_last_token() -> None:
    packed = pack_trees([text_tree(3, [2, 3], prefix_length=2, train_prefix=True), text_tree(2, [1])], pad_id=9)
    assert packed.token_ids.tolist() == [[0, 1, 2, 50, 51, 100, 200, 201], [0, 1, 9, 9, 9, 9, 9, 9]]
    assert packed.position_ids[1].tolist() == [[0, 1, 2, 3, 4, 5, 5, 6], [0, 1, 0, 0, 0, 0, 0, 0]]
    assert packed.segments.tolist() == [[0, 0, 0, 0, 0, 1, 2, 2], [0, 0, -1, -1, -1, -1, -1, -1]]
    assert packed.targets.tolist() == [50, 51, 100, 101, 200, 201, 202, 100]
    assert packed.predictors.tolist() == [2, 3, 4, 5, 4, 6, 7, 9]


def test_a_branch_sees_the_trunk_and_itself_only() -> None:
    packed = pack_trees([text_tree(2, [3, 2])], pad_id=9)
    visible = packed.attention_bias(torch.float32, torch.device("cpu"))[0, 0] == 0
    assert visible.int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [1, 1, 0, 0, 1],
    ]


PLANS = {
    "all fit in one": ([4, 4, 4], 12, [[0, 1, 2]]),
    "longest first, padding counted": ([2, 6, 5, 1], 12, [[1, 2], [0, 3]]),
    "one longer than the budget": ([3, 40], 12, [[1], [0]]),
    "each alone": ([12, 12], 12, [[0], [1]]),
    "none": ([], 12, []),
}


@pytest.mark.parametrize("case", PLANS)
def test_micro_batches_keep_to_the_token_budget(case: str) -> None:
    lengths, max_tokens, expected = PLANS[case]
    trees = [text_tree(length, [1]) for length in lengths]
    assert [row_length(tree) for tree in trees] == lengths
    assert plan_micro_batches(trees, max_tokens) == expected


def test_splitting_repeats_the_trunk_and_keeps_the_order_of_tokens() -> None:
    tree = text_tree(4, [5, 5, 5, 20], prefix_length=2, train_prefix=True)
    parts = split_trees([tree], max_tokens=14)
    assert [[len(b) for b in part.branches] for part in parts] == [[5, 5], [5], [20]]
    assert [part.train_prefix for part in parts] == [True, False, False]
    assert pack_trees(parts, 0).targets.tolist() == pack_trees([tree], 0).targets.tolist()


def test_trees_that_fit_are_not_split() -> None:
    trees = [text_tree(4, [5, 5]), text_tree(3, [])]
    assert split_trees(trees, max_tokens=12) == trees
