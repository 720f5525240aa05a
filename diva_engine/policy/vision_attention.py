"""Attention of the vision tower: windows of one size attend together, or all in one variable-length call.

transformers calls its attention once a window, 64 times for a picture of 448 x 448 pixels in each windowed layer.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from diva_engine.policy.tree_attention_varlen import find_kernel


def attend_windows_together(visual: Any, *, is_varlen: bool = False) -> None:
    """Give a Qwen vision tower this attention; weights and their names stay.

    `is_varlen`: one call of the kernel of flash_attention_2 for windows of all sizes; else one of sdpa for each size.
    """
    for block in visual.blocks:
        block.attn.forward = functools.partial(_forward, block.attn, is_varlen)


def _forward(
    attention: Any,
    is_varlen: bool,
    hidden_states: Tensor,  # [P, vision hidden size]
    cu_seqlens: Tensor,  # [windows + 1]: where each window begins
    position_embeddings: tuple[Tensor, Tensor],  # cosine and sine, [P, head size] each
    **kwargs: Any,
) -> Tensor:
    states = attention.qkv(hidden_states).unflatten(1, (3, attention.num_heads, -1))
    query, key, value = states.unbind(1)
    query, key = (_rotate(rotated, *position_embeddings) for rotated in (query, key))
    lengths = cu_seqlens.diff().tolist()
    if is_varlen:
        limits = (cu_seqlens, cu_seqlens, max(lengths), max(lengths))
        attended = find_kernel(query.device.type)(query, key, value, *limits, is_causal=False)
    else:
        attended = attend_windows(query, key, value, lengths, attention.scaling)
    return attention.proj(attended.flatten(1))


def attend_windows(query: Tensor, key: Tensor, value: Tensor, lengths: list[int], scale: float) -> Tensor:
    """[P, heads, head size] each, windows of `lengths` patches end to end -> the same shape; each sees itself."""
    if len(set(lengths)) == 1:
        return _attend_equal(query, key, value, lengths[0], scale)
    places = torch.arange(len(query)).split(lengths)
    same_length = [[place for place in places if len(place) == length] for length in sorted(set(lengths))]
    order = torch.cat([place for windows in same_length for place in windows]).to(query.device)
    sizes = [len(windows) * len(windows[0]) for windows in same_length]
    sorted_states = (states.index_select(0, order).split(sizes) for states in (query, key, value))
    parts = [
        _attend_equal(*states, len(windows[0]), scale)
        for *states, windows in zip(*sorted_states, same_length, strict=True)
    ]
    return torch.cat(parts).index_select(0, order.argsort())


def _attend_equal(query: Tensor, key: Tensor, value: Tensor, length: int, scale: float) -> Tensor:
    """Windows of `length` patches each."""
    windows = (states.unflatten(0, (-1, length)).transpose(1, 2) for states in (query, key, value))
    return F.scaled_dot_product_attention(*windows, scale=scale).transpose(1, 2).flatten(0, 1)


def _rotate(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """states [P, heads, head size]; in float32, as transformers has it."""
    exact, cos, sin = states.float(), cos[:, None].float(), sin[:, None].float()
    first, second = exact.chunk(2, dim=-1)
    return (exact * cos + torch.cat([-second, first], dim=-1) * sin).to(states.dtype)
