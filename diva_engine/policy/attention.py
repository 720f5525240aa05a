"""Attention over a packed row of answer trees: a trunk sees itself, a branch its trunk and itself, causally.

Registered with transformers under a name of its own, and given to the text model when a policy is loaded. Where no
layout comes along (transformers' own generation, the prefill of rollouts) it is transformers' sdpa attention.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

SHARED_PROMPT_ATTENTION = "shared_prompt"


@dataclass(frozen=True)
class TreeSpan:
    """One tree of a packed row. Its branches are attended as num_branches x `width` slots, right-padded."""

    trunk_length: int
    num_branch_tokens: int
    num_branches: int
    width: int  # tokens of the longest branch; 0 where no branch has a token in the row


@dataclass(frozen=True)
class PackedLayout:
    """The trees of a packed row of W tokens, in order."""

    spans: tuple[TreeSpan, ...]
    slot_tokens: Tensor  # [S] int64: the token in each branch slot of all trees; padding slots repeat any token
    sources: Tensor  # [W] int64: place of each token in the trees' outputs, laid end to end as trunk, slots, trunk, ...

    def to(self, device: torch.device) -> PackedLayout:
        return PackedLayout(self.spans, self.slot_tokens.to(device), self.sources.to(device))


def shared_prompt_attention(
    module: Any,
    query: Tensor,  # [1, heads, W, head size]
    key: Tensor,  # [1, key-value heads, W, head size]
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    packed_layout: PackedLayout | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """-> [1, W, heads, head size] and no weights, as transformers' attention functions give them."""
    if packed_layout is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    trunks, branches = zip(*(_split_by_tree(states[0], packed_layout) for states in (query, key, value)), strict=True)
    outputs = []
    for number, span in enumerate(packed_layout.spans):
        trunk_query, trunk_key, trunk_value = (states[number] for states in trunks)
        outputs.append(_attend_trunk(trunk_query, trunk_key, trunk_value))
        if span.width:
            own_query, own_key, own_value = (states[number] for states in branches)
            outputs.append(_attend_branches(own_query, (trunk_key, own_key), (trunk_value, own_value)))
    return torch.cat(outputs).index_select(0, packed_layout.sources)[None], None


def _split_by_tree(states: Tensor, layout: PackedLayout) -> tuple[list[Tensor], list[Tensor]]:
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


AttentionInterface.register(SHARED_PROMPT_ATTENTION, shared_prompt_attention)
AttentionMaskInterface.register(SHARED_PROMPT_ATTENTION, sdpa_mask)
