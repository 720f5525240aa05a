"""Shared-prompt packing: a prompt, its image and its forced prefix once in the row, then every answer to it.

    row:       trunk (prompt + prefix) | branch 1 | branch 2 | ... | next tree's trunk | ...
    sees:      itself                  | trunk and itself          |
    position:  as the prompt has them  | each goes on after the trunk

The last token of a branch predicts nothing and is left out of the row. Nothing is padded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from diva_engine.policy.tree_shape import TreeShape
from diva_engine.records import AnswerTree


@dataclass(frozen=True)
class PackedRow:
    """Trees laid end to end: W tokens, of which T predictions are trained, in the order of AnswerTree."""

    token_ids: Tensor  # [W] int64
    position_ids: Tensor  # [3, W] int64
    shapes: tuple[TreeShape, ...]
    predictors: Tensor  # [T] int64: the place whose hidden state predicts each trained token
    targets: Tensor  # [T] int64
    pixel_values: Tensor | None  # [P, ...] the pictures of all trees, in order
    image_grid_thw: Tensor | None  # [number of images, 3]


def row_length(tree: AnswerTree) -> int:
    """Tokens of the tree in a row."""
    return _shape(tree).length


def pack_trees(trees: Sequence[AnswerTree]) -> PackedRow:
    """Lay the trees end to end."""
    tokens: list[int] = []
    predictors: list[int] = []
    targets: list[int] = []
    for tree in trees:
        predictors += [len(tokens) + place for place in _predictors(tree)]
        targets += _targets(tree)
        tokens += _tokens(tree)
    pixels = [tree.prompt.pixel_values for tree in trees if tree.prompt.pixel_values is not None]
    grids = [tree.prompt.image_grid_thw for tree in trees if tree.prompt.image_grid_thw is not None]
    return PackedRow(
        token_ids=torch.tensor(tokens, dtype=torch.int64),
        position_ids=torch.cat([_positions(tree) for tree in trees], dim=1),
        shapes=tuple(_shape(tree) for tree in trees),
        predictors=torch.tensor(predictors, dtype=torch.int64),
        targets=torch.tensor(targets, dtype=torch.int64),
        pixel_values=torch.cat(pixels) if pixels else None,
        image_grid_thw=torch.cat(grids) if grids else None,
    )


def plan_micro_batches(trees: Sequence[AnswerTree], max_tokens: int) -> list[list[int]]:
    """Indices of the trees of each micro-batch, in order: as many as fit into a row of `max_tokens` tokens.

    A tree longer than `max_tokens` gets a micro-batch of its own; `split_trees` makes such trees shorter.
    """
    batches: list[list[int]] = []
    used = 0
    for index, tree in enumerate(trees):
        length = row_length(tree)
        if batches and used + length <= max_tokens:
            batches[-1].append(index)
            used += length
        else:
            batches.append([index])
            used = length
    return batches


def split_trees(trees: Sequence[AnswerTree], max_tokens: int) -> list[AnswerTree]:
    """Split every tree that is longer than `max_tokens` into several, the trunk repeated.

    The order of the trained tokens stays: the first part trains the prefix, the branches keep their order.
    """
    parts: list[AnswerTree] = []
    for tree in trees:
        parts += _split_tree(tree, max_tokens)
    return parts


def _split_tree(tree: AnswerTree, max_tokens: int) -> list[AnswerTree]:
    chunks: list[list[tuple[int, ...]]] = [[]]
    room = max_tokens - _trunk_length(tree)
    used = 0
    for branch, length in zip(tree.branches, _branch_lengths(tree), strict=True):
        if chunks[-1] and used + length > room:
            chunks.append([])
            used = 0
        chunks[-1].append(branch)
        used += length
    first = replace(tree, branches=tuple(chunks[0]))
    return [first] + [replace(tree, branches=tuple(chunk), train_prefix=False) for chunk in chunks[1:]]


def _shape(tree: AnswerTree) -> TreeShape:
    return TreeShape(_trunk_length(tree), tuple(_branch_lengths(tree)))


def _trunk_length(tree: AnswerTree) -> int:
    return len(tree.prompt.token_ids) + len(tree.prompt.prefix_ids)


def _branch_lengths(tree: AnswerTree) -> list[int]:
    """Tokens of each branch in the row."""
    return [max(0, len(branch) - 1) for branch in tree.branches]


def _tokens(tree: AnswerTree) -> list[int]:
    tokens = [*tree.prompt.token_ids, *tree.prompt.prefix_ids]
    for branch in tree.branches:
        tokens += branch[:-1]
    return tokens


def _positions(tree: AnswerTree) -> Tensor:
    """[3, row length]: text after a picture goes on at the picture's largest position + 1, on all three axes."""
    prompt = tree.prompt.position_ids
    start = int(prompt.max()) + 1
    trunk_end = start + len(tree.prompt.prefix_ids)
    texts = [torch.arange(start, trunk_end)]
    texts += [torch.arange(trunk_end, trunk_end + length) for length in _branch_lengths(tree)]
    return torch.cat([prompt, torch.cat(texts).expand(3, -1)], dim=1)


def _predictors(tree: AnswerTree) -> list[int]:
    """Place in the tree that predicts each trained token: the one before it; the trunk's end for a branch's first."""
    trunk = _trunk_length(tree)
    places: list[int] = []
    if tree.train_prefix:
        places += range(len(tree.prompt.token_ids) - 1, trunk - 1)
    start = trunk
    for branch in tree.branches:
        if branch:
            places += [trunk - 1, *range(start, start + len(branch) - 1)]
            start += len(branch) - 1
    return places


def _targets(tree: AnswerTree) -> list[int]:
    targets = list(tree.prompt.prefix_ids) if tree.train_prefix else []
    for branch in tree.branches:
        targets += branch
    return targets
