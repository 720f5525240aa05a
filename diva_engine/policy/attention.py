"""Attention over a packed row of answer trees: a trunk sees itself, a branch its trunk and itself, causally.

One function, registered with transformers under a name of its own and given to the text model when a policy is loaded.
What it does with a row is decided by the layout that comes along, one of three by
`worker.actor.model.attn_implementation`:

| choice | attention calls for a row of T trees | a trunk's keys and values | needs |
| --- | --- | --- | --- |
| sdpa | 2 T (1 for a tree of a trunk alone) | copied for each branch | nothing |
| flex | 1 | read where they lie | to train: a GPU and triton |
| flash_attention_2 | 1 | copied for each branch but the first | a GPU; bfloat16 or float16 |

Where no layout comes along (transformers' own generation, the prefill of rollouts) it is transformers' sdpa attention.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from diva_engine.policy import tree_attention_flex, tree_attention_sdpa, tree_attention_varlen
from diva_engine.policy.tree_shape import TreeShape
from diva_engine.records import UserError

SHARED_PROMPT_ATTENTION = "shared_prompt"


class RowLayout(Protocol):
    """Where the trees of one packed row of W tokens lie, made once a row and used by every layer."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """[heads, W, head size], keys and values with fewer heads where they share them -> [W, heads, head size]."""


_LAY_OUT: dict[str, Callable[[Sequence[TreeShape], torch.device], RowLayout]] = {
    "sdpa": tree_attention_sdpa.lay_out,
    "flash_attention_2": tree_attention_varlen.lay_out,
    "flex": tree_attention_flex.lay_out,
}


def lay_out_row(attn_implementation: str, shapes: Sequence[TreeShape], device: torch.device) -> RowLayout:
    """The layout of a row of trees of these shapes, on the device where it is attended."""
    return _LAY_OUT[attn_implementation](shapes, device)


def refuse_unknown_attention(attn_implementation: str) -> None:
    """Raises UserError where there is no such attention."""
    if attn_implementation not in _LAY_OUT:
        names = ", ".join(_LAY_OUT)
        raise UserError(f"attn_implementation={attn_implementation}: no such attention is known; use one of {names}")


def refuse_untrainable_attention(attn_implementation: str, device: torch.device, dtype: torch.dtype) -> None:
    """Raises UserError where a policy that computes in `dtype` on `device` cannot be trained with this attention."""
    refuse_unknown_attention(attn_implementation)
    choice = f"worker.actor.model.attn_implementation={attn_implementation}"
    if attn_implementation == "flex" and device.type == "cpu":
        raise UserError(f"{choice}: torch has no backward pass of it on CPUs; use sdpa")
    if attn_implementation == "flex" and find_spec("triton") is None:
        raise UserError(f"{choice}: its kernels are compiled by triton, which is not installed; pip install triton")
    if attn_implementation == "flash_attention_2":
        if device.type != "cuda":
            raise UserError(f"{choice}: its kernels run on GPUs only, not on {device.type}; use sdpa")
        if dtype not in (torch.bfloat16, torch.float16):
            raise UserError(
                f"{choice}: its kernels compute in bfloat16 and float16 only; "
                "set worker.actor.model.torch_dtype=bfloat16, or use sdpa or flex"
            )
        tree_attention_varlen.find_kernel(device.type)


def shared_prompt_attention(
    module: Any,
    query: Tensor,  # [1, heads, W, head size]
    key: Tensor,  # [1, key-value heads, W, head size]
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    packed_layout: RowLayout | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """-> [1, W, heads, head size] and no weights, as transformers' attention functions give them."""
    if packed_layout is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    return packed_layout.attend(query[0], key[0], value[0])[None], None


AttentionInterface.register(SHARED_PROMPT_ATTENTION, shared_prompt_attention)
AttentionMaskInterface.register(SHARED_PROMPT_ATTENTION, sdpa_mask)
