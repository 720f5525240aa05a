"""Packed answer trees through torch's scaled_dot_product_attention: two calls a tree, its trunk and its branches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from diva_engine.policy.tree_shape import TreeShape


@dataclass(frozen=True)
class TreeSpan:
    """One tree of a packed row. Its branches are attended as num_branches x `width` slots, right-padded."""

    trunk_length: int
    num_branch_tokens: int
    num_branches: int
    width: int  # tokens of the longest branch; 0 where no branch has a token in the row


@dataclass(frozen=True)
class SdpaLayout:
    """The trees of a packed row of W tokens, in order."""

    spans: tuple[TreeSpan, ...]
    slot_tokens: Tensor  # [S] int64: the token in each branch slot of all trees; padding slots repeat any token
    sources: Tensor  # [W] int64: place of each token in the trees' outputs, laid end to end as trunk, slots, trunk, ...

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """[heads, W, head size], keys and values with fewer heads where they share them -> [W, heads, head size]."""
        trunks, branches = zip(*(_split_by_tree(states, self) for states in (query, key, value)), strict=True)
        outputs = []
        for number, span in enumerate(self.spans):
            trunk_query, trunk_key, trunk_value = (states[number] for states in trunks)
            outputs.append(_attend_trunk(trunk_query, trunk_key, trunk_value))
            if span.width:
                own_query, own_key, own_value = (states[number] for states in branches)
                outputs.append(_attend_branches(own_query, (trunk_key, own_key), (trunk_value, own_value)))
        return torch.cat(outputs).index_select(0, self.sources)


def lay_out(shapes: Sequence[TreeShape], device: torch.device) -> SdpaLayout:
    """The slots of trees that lie end to end."""
    spans: list[TreeSpan] = []
    slot_tokens: list[Tensor] = []
    sources: list[Tensor] = []
    start = num_outputs = 0
    for shape in shapes:
        trunk, lengths = shape.trunk_length, torch.tensor(shape.branch_lengths, dtype=torch.int64)
        width = int(lengths.max()) if len(lengths) else 0
        spans.append(TreeSpan(trunk, int(lengths.sum()), len(lengths), width))
        # Slots [branch, width]: a slot is filled where its number lies within its branch.
        is_filled = (torch.arange(width) < lengths[:, None]).flatten()
        tokens = torch.full((len(is_filled),), start, dtype=torch.int64)
        tokens[is_filled] = start + trunk + torch.arange(spans[-1].num_branch_tokens)
        slot_tokens.append(tokens)
        sources += [num_outputs + torch.arange(trunk), num_outputs + trunk + is_filled.nonzero()[:, 0]]
        start += shape.length
        num_outputs += trunk + len(is_filled)
    return SdpaLayout(tuple(spans), torch.cat(slot_tokens).to(device), torch.cat(sources).to(device))


def _split_by_tree(states: Tensor, layout: SdpaLayout) -> tuple[list[Tensor], list[Tensor]]:
    """[heads, W, head size] -> per tree, its trunk [1, heads, P, head size] and branches [n, heads, width, head size].

    One split for all trees: slices would each write a gradient as long as the whole row.
    """
    rows = states.transpose(0, 1)
    lengths = [length for span in layout.spans for length in (span.trunk_length, span.num_branch_tokens)]
    trunks = [trunk.transpose(0, 1)[None] for trunk in rows.split(lengths)[::2]]
    slots = rows.index_select(0, layout.slot_tokens).split([span.num_branches * span.width for span in layout.spans])
    shapes = [(span.num_branches, span.width) for span in layout.spans]
    branches = [slot.unflatten(0, shape).transpose(1, 2) for slot, shape in zip(slots, shapes, strict=True)]
    return trunks, branches


def _attend_trunk(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """[1, heads, P, head size] -> [P, heads, head size]."""
    output = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
    return output[0].transpose(0, 1)


def _attend_branches(query: Tensor, keys: tuple[Tensor, Tensor], values: tuple[Tensor, Tensor]) -> Tensor:
    """query [n, heads, width, head size], keys and values of the trunk [1, ...] and own [n, ...] -> [n * width, ...].

    Query heads that share a key are laid one after the other as more queries, so that no key is copied for them.
    """
    num_branches, num_kv_heads, width, _ = keys[1].shape
    key, value = (torch.cat([trunk.expand(num_branches, -1, -1, -1), own], dim=2) for trunk, own in (keys, values))
    grouped = query.unflatten(1, (num_kv_heads, -1))
    bias = _causal_bias(width, key.shape[2], query).repeat(grouped.shape[2], 1)
    output = F.scaled_dot_product_attention(grouped.flatten(2, 3), key, value, attn_mask=bias)
    return output.unflatten(2, (-1, width)).flatten(1, 2).transpose(1, 2).flatten(0, 1)


def _causal_bias(num_queries: int, num_keys: int, like: Tensor) -> Tensor:
    """[queries, keys]: the queries are the last of the keys; 0 where one sees the other, else very negative."""
    hidden = torch.full((num_queries, num_keys), torch.finfo(like.dtype).min, dtype=like.dtype, device=like.device)
    return hidden.triu_(num_keys - num_queries + 1)
