"""Packed answer trees as sequences of many lengths, in one call of a variable-length attention kernel.

    row:       trunk of P tokens | branch 1 | branch 2 | branch 3 | next tree ...
    queries:   [         sequence 1        ] [seq. 2  ] [seq. 3  ]
    keys:      trunk, branch 1 | trunk, branch 2 | trunk, branch 3

A trunk and its first branch are one causal sequence; every further branch is one whose keys are the trunk's and its
own, aligned with its queries at their ends. Branches without a token are none.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Protocol

import torch
from torch import Tensor

from diva_engine.policy.tree_shape import TreeShape
from diva_engine.records import UserError

_INSTALL = "pip install flash-attn --no-build-isolation"


class VarlenKernel(Protocol):
    """The attention of several sequences that lie end to end; `varlen_attention_definition` says what it computes."""

    def __call__(
        self,
        query: Tensor,  # [queries of all sequences, heads, head size]
        key: Tensor,  # [keys of all sequences, key-value heads, head size]
        value: Tensor,
        query_starts: Tensor,  # [sequences + 1] int32: where each sequence's queries begin, and where the last ends
        key_starts: Tensor,  # [sequences + 1] int32
        max_queries: int,  # of one sequence
        max_keys: int,
        *,
        is_causal: bool,
    ) -> Tensor: ...  # [queries of all sequences, heads, head size]


@dataclass(frozen=True)
class VarlenLayout:
    """The sequences of a packed row of W tokens."""

    key_tokens: Tensor | None  # [keys] int64: the token whose key each sequence reads; None: the row as it lies
    query_starts: Tensor  # [sequences + 1] int32
    key_starts: Tensor  # [sequences + 1] int32
    max_queries: int
    max_keys: int

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """[heads, W, head size], keys and values with fewer heads where they share them -> [W, heads, head size]."""
        rows, keys, values = (states.transpose(0, 1) for states in (query, key, value))
        if self.key_tokens is not None:
            keys, values = (_ReadRows.apply(states, self.key_tokens) for states in (keys, values))
        kernel = find_kernel(query.device.type)
        limits = (self.query_starts, self.key_starts, self.max_queries, self.max_keys)
        return kernel(rows, keys, values, *limits, is_causal=True)


def lay_out(shapes: Sequence[TreeShape], device: torch.device) -> VarlenLayout:
    """The sequences of trees that lie end to end."""
    key_tokens: list[Tensor] = []
    num_queries: list[int] = []
    start = 0
    for shape in shapes:
        first, *others = [length for length in shape.branch_lengths if length] or [0]
        num_queries += [shape.trunk_length + first, *others]
        key_tokens.append(torch.arange(start, start + num_queries[-1 - len(others)]))
        trunk, start = key_tokens[-1][: shape.trunk_length], start + shape.trunk_length + first
        for length in others:
            key_tokens.append(torch.cat([trunk, torch.arange(start, start + length)]))
            start += length
    num_keys = [len(tokens) for tokens in key_tokens]
    is_as_it_lies = num_keys == num_queries
    return VarlenLayout(
        key_tokens=None if is_as_it_lies else torch.cat(key_tokens).to(device),
        query_starts=_starts(num_queries).to(device),
        key_starts=_starts(num_keys).to(device),
        max_queries=max(num_queries),
        max_keys=max(num_keys),
    )


def _starts(lengths: Sequence[int]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).int()


class _ReadRows(torch.autograd.Function):
    """rows [W, ...] by index [K] -> [K, ...]. Gradients are summed in float32: a trunk's row is read once a branch."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.num_rows = len(rows)
        return rows.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (index,) = ctx.saved_tensors
        exact = gradient.to(torch.promote_types(gradient.dtype, torch.float32))
        total = exact.new_zeros(ctx.num_rows, *gradient.shape[1:]).index_add_(0, index, exact)
        return total.to(gradient.dtype), None


@functools.cache
def find_kernel(device_type: str) -> VarlenKernel:
    """flash-attn where it is installed, else torch's own kernel; on the CPU, where neither runs, the definition.

    Raises UserError where there is none.
    """
    if device_type == "cpu":
        return varlen_attention_definition
    if find_spec("flash_attn") is not None:
        return _flash_attn_kernel()
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        raise UserError(
            f"attn_implementation=flash_attention_2: neither flash-attn nor torch {torch.__version__} has a kernel for "
            f"it; {_INSTALL}, or use sdpa"
        ) from None
    return _torch_kernel(varlen_attn)


def _flash_attn_kernel() -> VarlenKernel:
    try:
        from flash_attn import flash_attn_varlen_func
    except (ImportError, OSError) as error:  # built against another torch, or its CUDA libraries are missing
        raise UserError(
            f"attn_implementation=flash_attention_2: flash-attn cannot be imported ({error}); build it against this "
            f"torch ({_INSTALL} --force-reinstall --no-deps), or remove it, and torch's own kernel is taken"
        ) from None

    def attend(query: Tensor, key: Tensor, value: Tensor, *limits: Any, is_causal: bool) -> Tensor:
        # Since flash-attn 2.1 a causal mask is aligned at the ends; `deterministic` came with 2.4.1.
        exactly = torch.are_deterministic_algorithms_enabled()
        return flash_attn_varlen_func(query, key, value, *limits, causal=is_causal, deterministic=exactly)

    return attend


def _torch_kernel(varlen_attn: Any) -> VarlenKernel:
    """torch's words changed: up to 2.10 `is_causal`, then windows; shared heads had to be repeated up to 2.11."""
    known = inspect.signature(varlen_attn).parameters
    causal = {"window_size": (-1, 0)} if "window_size" in known else {"is_causal": True}
    shares_heads = "enable_gqa" in known

    def attend(query: Tensor, key: Tensor, value: Tensor, *limits: Any, is_causal: bool) -> Tensor:
        words = dict(causal) if is_causal else {}
        if shares_heads:
            words["enable_gqa"] = True
        else:
            key, value = (_repeat_heads(states, query) for states in (key, value))
        return varlen_attn(query, key, value, *limits, **words)

    return attend


def varlen_attention_definition(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_starts: Tensor,
    key_starts: Tensor,
    max_queries: int,
    max_keys: int,
    *,
    is_causal: bool,
) -> Tensor:
    """What a `VarlenKernel` computes, in plain torch: of m queries and n keys, query i sees keys 0 to n - m + i."""
    sizes = query_starts.diff().tolist(), key_starts.diff().tolist(), key_starts.diff().tolist()
    key, value = (_repeat_heads(states, query) for states in (key, value))
    outputs = []
    for own in zip(*(states.split(size) for states, size in zip((query, key, value), sizes, strict=True)), strict=True):
        queries, keys, values = (states.transpose(0, 1) for states in own)
        scores = queries @ keys.transpose(1, 2) * query.shape[2] ** -0.5
        if is_causal:
            is_hidden = torch.ones_like(scores[0], dtype=torch.bool).triu(scores.shape[2] - scores.shape[1] + 1)
            scores = scores.masked_fill(is_hidden, float("-inf"))
        outputs.append((scores.softmax(-1) @ values).transpose(0, 1))
    return torch.cat(outputs)


def _repeat_heads(states: Tensor, query: Tensor) -> Tensor:
    """[..., key-value heads, head size] -> [..., heads, head size]."""
    return states.repeat_interleave(query.shape[1] // states.shape[1], dim=1)
