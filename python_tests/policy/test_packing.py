"""The row of shared-prompt packing: what it holds, how it is cut into micro-batches, how long trees are split."""

from __future__ import annotations

import pytest
import torch

from diva_engine.policy.packing import pack_trees, plan_micro_batches, row_length, split_trees
from diva_engine.policy.tree_attention_sdpa import TreeSpan, lay_out
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


def test_a_row_is_each_trunk_followed_by_its_branches_without_their_last_tokens() -> None:
    row = pack_trees([text_tree(3, [2, 3], prefix_length=2, train_prefix=True), text_tree(2, [1])])
    assert row.token_ids.tolist() == [0, 1, 2, 50, 51, 100, 200, 201, 0, 1]
    assert row.position_ids[1].tolist() == [0, 1, 2, 3, 4, 5, 5, 6, 0, 1]
    assert row.targets.tolist() == [50, 51, 100, 101, 200, 201, 202, 100]
    assert row.predictors.tolist() == [2, 3, 4, 5, 4, 6, 7, 9]


def test_branches_fill_slots_and_come_back_in_the_order_of_the_row() -> None:
    row = pack_trees([text_tree(2, [3, 1, 2]), text_tree(3, []), text_tree(1, [3])])
    layout = lay_out(row.shapes, torch.device("cpu"))
    assert layout.spans == (TreeSpan(2, 3, 3, 2), TreeSpan(3, 0, 0, 0), TreeSpan(1, 2, 1, 2))
    # Slots of the first tree: its branches of 2, 0 and 1 tokens, padded to 2 with its first token.
    assert layout.slot_tokens.tolist() == [2, 3, 0, 0, 4, 0, 9, 10]
    # Outputs: 2 of the trunk, 6 slots, 3 of the second trunk, 1 of the third, 2 slots.
    assert layout.sources.tolist() == [0, 1, 2, 3, 6, 8, 9, 10, 11, 12, 13]


PLANS = {
    "all fit in one": ([4, 4, 4], 12, [[0, 1, 2]]),
    "in order": ([2, 6, 5, 1], 8, [[0, 1], [2, 3]]),
    "one longer than the budget": ([3, 40, 2], 12, [[0], [1], [2]]),
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
    assert pack_trees(parts).targets.tolist() == pack_trees([tree]).targets.tolist()


def test_trees_that_fit_are_not_split() -> None:
    trees = [text_tree(4, [5, 5]), text_tree(3, [])]
    assert split_trees(trees, max_tokens=12) == trees
