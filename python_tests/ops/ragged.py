"""Ragged groups for the op tests: named cases and hypothesis strategies."""

from __future__ import annotations

import torch
from hypothesis import strategies
from torch import Tensor

# Group sizes that meet every branch: nothing, one, less than, exactly and more than a warp, and many warps.
SIZES: dict[str, list[int]] = {
    "nothing": [],
    "one empty group": [0],
    "one group of one": [1],
    "equal groups": [5] * 12,
    "ragged": [3, 0, 1, 7, 2, 0, 16],
    "around a warp": [31, 32, 33, 64, 65],
    "around a block": [1023, 1, 1025],
    "many small": [n % 9 for n in range(700)],
}

sizes = strategies.lists(strategies.one_of(strategies.integers(0, 12), strategies.integers(0, 150)), max_size=20)


def offsets_of(group_sizes: list[int]) -> Tensor:
    return torch.tensor([0, *group_sizes], dtype=torch.int64).cumsum(0)


def rewards(count: int, seed: int = 0) -> Tensor:
    """0.9 * accuracy + 0.1 * format, as the trainer makes them: many groups without signal."""
    generator = torch.Generator().manual_seed(seed)
    accuracy, format_ = (torch.rand(2, count, generator=generator) < 0.5).float()
    return 0.9 * accuracy + 0.1 * format_
