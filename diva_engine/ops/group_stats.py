"""Mean, spread and range of ragged groups."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from diva_engine.ops import library


class GroupStats(NamedTuple):
    """Statistics of each group, [G] each."""

    mean: Tensor
    std: Tensor
    min: Tensor
    max: Tensor


def group_stats(
    values: Tensor,  # [N] float32; float64 on the CPU too
    offsets: Tensor,  # [G+1] int64
) -> GroupStats:
    """Mean, sample std, minimum and maximum of `values[offsets[g]:offsets[g+1]]` for every group g.

    A group of one, or of equal values, has std 0 and its value as the mean, both exactly. An empty group is all zeros.
    A NaN makes all four of its group NaN. The CPU and CUDA results have the same bits. No gradient.

    The offsets begin with 0, never fall and end with N. The CPU refuses others; CUDA, which would have to wait for the
    device to look, reads nothing out of bounds but gives a meaningless result.
    """
    library.refuse_gradient("group_stats", values=values)
    return GroupStats(*torch.ops.diva_engine.group_stats.default(values, offsets))


def group_stats_reference(values: Tensor, offsets: Tensor) -> GroupStats:
    """The definition, in plain torch."""
    sizes = offsets.diff()
    group = torch.repeat_interleave(sizes)  # [N] group of each value
    zeros = values.new_zeros(len(sizes))

    mean = zeros.index_add(0, group, values) / sizes.clamp(min=1)
    squares = zeros.index_add(0, group, (values - mean[group]) ** 2)
    std = (squares / (sizes - 1).clamp(min=1)).sqrt()
    low = zeros.scatter_reduce(0, group, values, "amin", include_self=False)
    high = zeros.scatter_reduce(0, group, values, "amax", include_self=False)

    equal = low == high
    return GroupStats(torch.where(equal, low, mean), std.masked_fill(equal, 0), low, high)


@torch.library.register_fake("diva_engine::group_stats")
def _fake(values: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    num_groups = offsets.shape[0] - 1
    mean, std, low, high = (values.new_empty(num_groups) for _ in range(4))
    return mean, std, low, high
