"""Shared-prompt packing: a prompt, its image and its forced prefix once in a row, then every answer to it.

    row:       trunk (prompt + prefix) | branch 1 | branch 2 | ... | padding
    sees:      causal                  | trunk and itself      | itself
    position:  as the prompt has them  | each goes on after the trunk

The last token of a branch predicts nothing and is left out of the row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from diva_engine.records import AnswerTree

_PADDING = -1  # segment of padding; the trunk is 0, branches count from 1


@dataclass(frozen=True)
class PackedRows:
    """Rows of trees, right-padded to the longest: R rows of W tokens. T trained tokens in the order of AnswerTree."""

    token_ids: Tensor  # [R, W] int64
    position_ids: Tensor  # [3, R, W] int64
    segments: Tensor  # [R, W] int64: 0 trunk, 1.. branches, -1 padding
    predictors: Tensor  # [T] int64, index into R * W: the place whose hidden state predicts the trained token
    targets: Tensor  # [T] int64
    pixel_values: Tensor | None  # [P, ...] the pictures of all rows, in order
    image_grid_thw: Tensor | None  # [number of images, 3]

    def attention_bias(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        """[R, 1, W, W] additive mask: 0 where the query (third axis) sees the key (last axis), else very negative."""
        segments = self.segments.to(device)
        query, key = segments[:, :, None], segments[:, None, :]
        places = torch.arange(segments.shape[1], device=device)
        visible = (places[:, None] >= places) & ((key == 0) | (query == key))
        hidden_score = torch.finfo(dtype).min  # not -inf: a row of -inf alone would make the softmax NaN
        return torch.zeros(visible.shape, dtype=dtype, device=device).masked_fill_(~visible, hidden_score)[:, None]


def row_length(tree: AnswerTree) -> int:
    """Tokens of the tree's row, before padding."""
    return _trunk_length(tree) + sum(max(0, len(branch) - 1) for branch in tree.branches)


def pack_trees(trees: Sequence[AnswerTree], pad_id: int) -> PackedRows:
    """Lay each tree out in one row. `pad_id` may be any text token: nothing sees padding."""
    width = max(row_length(tree) for tree in trees)
    token_ids = torch.full((len(trees), width), pad_id, dtype=torch.int64)
    position_ids = torch.zeros(3, len(trees), width, dtype=torch.int64)
    segments = torch.full((len(trees), width), _PADDING, dtype=torch.int64)
    predictors: list[int] = []
    targets: list[int] = []
    for row, tree in enumerate(trees):
        length = row_length(tree)
        token_ids[row, :length] = torch.tensor(_row_tokens(tree), dtype=torch.int64)
        position_ids[:, row, :length] = _row_positions(tree)
        segments[row, :length] = _row_segments(tree)
        predictors += [row * width + place for place in _row_predictors(tree)]
        targets += _row_targets(tree)
    pixels = [tree.prompt.pixel_values for tree in trees if tree.prompt.pixel_values is not None]
    grids = [tree.prompt.image_grid_thw for tree in trees if tree.prompt.image_grid_thw is not None]
    return PackedRows(
        token_ids=token_ids,
        position_ids=position_ids,
        segments=segments,
        predictors=torch.tensor(predictors, dtype=torch.int64),
        targets=torch.tensor(targets, dtype=torch.int64),
        pixel_values=torch.cat(pixels) if pixels else None,
        image_grid_thw=torch.cat(grids) if grids else None,
    )


def plan_micro_batches(trees: Sequence[AnswerTree], max_tokens: int) -> list[list[int]]:
    """Indices of the trees of each micro-batch: at most `max_tokens` tokens each, padding counted, longest rows first.

    A tree longer than `max_tokens` gets a micro-batch of its own; `split_trees` makes such trees shorter.
    """
    lengths = [row_length(tree) for tree in trees]
    batches: list[list[int]] = []
    for index in sorted(range(len(trees)), key=lambda i: -lengths[i]):
        fits = batches and lengths[batches[-1][0]] * (len(batches[-1]) + 1) <= max_tokens
        if fits:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


def split_trees(trees: Sequence[AnswerTree], max_tokens: int) -> list[AnswerTree]:
    """Split every tree whose row is longer than `max_tokens` into several, the trunk repeated.

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
    for branch in tree.branches:
        length = max(0, len(branch) - 1)
        if chunks[-1] and used + length > room:
            chunks.append([])
            used = 0
        chunks[-1].append(branch)
        used += length
    first = replace(tree, branches=tuple(chunks[0]))
    return [first] + [replace(tree, branches=tuple(chunk), train_prefix=False) for chunk in chunks[1:]]


def _trunk_length(tree: AnswerTree) -> int:
    return len(tree.prompt.token_ids) + len(tree.prompt.prefix_ids)


def _row_tokens(tree: AnswerTree) -> list[int]:
    tokens = [*tree.prompt.token_ids, *tree.prompt.prefix_ids]
    for branch in tree.branches:
        tokens += branch[:-1]
    return tokens


def _row_positions(tree: AnswerTree) -> Tensor:
    """[3, row length]: text after a picture goes on at the picture's largest position + 1, on all three axes."""
    prompt = tree.prompt.position_ids
    start = int(prompt.max()) + 1
    trunk_end = start + len(tree.prompt.prefix_ids)
    texts = [torch.arange(start, trunk_end)]
    texts += [torch.arange(trunk_end, trunk_end + max(0, len(branch) - 1)) for branch in tree.branches]
    return torch.cat([prompt, torch.cat(texts).expand(3, -1)], dim=1)


def _row_segments(tree: AnswerTree) -> Tensor:
    lengths = torch.tensor([_trunk_length(tree)] + [max(0, len(branch) - 1) for branch in tree.branches])
    return torch.arange(len(lengths)).repeat_interleave(lengths)


def _row_predictors(tree: AnswerTree) -> list[int]:
    """Place in the row that predicts each trained token: the one before it; the trunk's end for a branch's first."""
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


def _row_targets(tree: AnswerTree) -> list[int]:
    targets = list(tree.prompt.prefix_ids) if tree.train_prefix else []
    for branch in tree.branches:
        targets += branch
    return targets
