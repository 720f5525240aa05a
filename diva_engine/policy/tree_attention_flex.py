"""Packed answer trees through torch's flex_attention: one compiled kernel for the row, which skips hidden blocks.

In a row every token is seen by itself and by what follows it up to some place: the end of its tree for a token of a
trunk, the end of its branch for a token of a branch. So one number a token says all, and two numbers for every block of
BLOCK_SIZE tokens say which blocks of the row are hidden, seen in part, or seen wholly.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from diva_engine.policy.tree_shape import TreeShape

BLOCK_SIZE = 128  # tokens; torch's kernels know no smaller blocks


@dataclass(frozen=True)
class FlexLayout:
    """Which tokens of a packed row of W tokens see which."""

    block_mask: BlockMask

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """[heads, W, head size], keys and values with fewer heads where they share them -> [W, heads, head size].

        On the CPU the scores of all pairs of tokens exist at once, and torch refuses a query that needs a gradient.
        """
        attend = flex_attention if query.device.type == "cpu" else _compiled()
        output = attend(query[None], key[None], value[None], block_mask=self.block_mask, enable_gqa=True)
        return output[0].transpose(0, 1)


@functools.cache
def _compiled() -> Callable[..., Tensor]:
    """Compiled for the first row, and once more for rows of all lengths, of which each micro-batch has its own."""
    return torch.compile(flex_attention)


def lay_out(shapes: Sequence[TreeShape], device: torch.device) -> FlexLayout:
    """The block mask of trees that lie end to end."""
    ends = reader_ends(shapes)
    partial, full = _seen_blocks(ends)
    return FlexLayout(
        BlockMask.from_kv_blocks(
            *(counts.to(device) for counts in _ordered(partial)),
            *(counts.to(device) for counts in _ordered(full)),
            BLOCK_SIZE=BLOCK_SIZE,
            mask_mod=_sees(ends.to(device)),
            seq_lengths=(len(ends), len(ends)),
        )
    )


def reader_ends(shapes: Sequence[TreeShape]) -> Tensor:
    """[W] int32: the place after the last token that sees each token of the row."""
    ends, lengths = [], []
    start = 0
    for shape in shapes:
        branches = torch.tensor(shape.branch_lengths, dtype=torch.int64)
        ends += [start + shape.length, *(start + shape.trunk_length + branches.cumsum(0)).tolist()]
        lengths += [shape.trunk_length, *shape.branch_lengths]
        start += shape.length
    return torch.tensor(ends, dtype=torch.int32).repeat_interleave(torch.tensor(lengths))


def _sees(ends: Tensor) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (query < ends[key])

    return sees


def _seen_blocks(ends: Tensor) -> tuple[Tensor, Tensor]:
    """[blocks of queries, blocks of keys] twice: whether some pairs of tokens see each other, and whether all do.

    A block of keys that lies before the queries is seen where a key's end lies after the first of them, and wholly
    where all ends lie after the last. The block of the queries themselves is seen in part.
    """
    num_blocks = -(-len(ends) // BLOCK_SIZE)
    missing = num_blocks * BLOCK_SIZE - len(ends)
    blocks = torch.nn.functional.pad(ends, (0, missing)).view(num_blocks, BLOCK_SIZE)
    starts = torch.arange(num_blocks)[:, None] * BLOCK_SIZE
    is_before = torch.ones(num_blocks, num_blocks, dtype=torch.bool).tril(-1)
    is_full = is_before & (blocks.amin(1) >= starts + BLOCK_SIZE)
    is_seen = is_before & (blocks.amax(1) > starts) | torch.eye(num_blocks, dtype=torch.bool)
    return is_seen & ~is_full, is_full


def _ordered(is_seen: Tensor) -> tuple[Tensor, Tensor]:
    """-> as torch has it: [1, 1, query blocks] how many key blocks each sees, and [..., key blocks] these first."""
    order = is_seen.int().argsort(dim=1, descending=True, stable=True)
    return is_seen.sum(1).int()[None, None], order.int()[None, None]
