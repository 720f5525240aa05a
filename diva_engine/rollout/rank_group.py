"""The ranks that hold one engine together, and what they ask it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.distributed as dist

from diva_engine.records import GenerationJob, UserError


def tensor_parallel_group(size: int) -> dist.ProcessGroup | None:
    """The ranks that hold this rank's engine with it; None where it has one alone."""
    if size == 1:
        return None
    ranks = range(dist.get_world_size())
    groups = [list(ranks[start : start + size]) for start in ranks[::size]]
    group, _ = dist.new_subgroups_by_enumeration(groups, backend="gloo")
    return group


def jobs_by_rank(
    group: dist.ProcessGroup | None, jobs: Sequence[GenerationJob], refused: Sequence[UserError]
) -> list[list[GenerationJob]]:
    """The jobs of all ranks of the group. What one of them has refused all raise, for none can answer alone."""
    found: list[Any] = [(list(jobs), list(refused))]
    if group is not None:
        found *= dist.get_world_size(group)
        dist.all_gather_object(found, found[0], group=group)
    for _, errors in found:
        if errors:
            raise errors[0]
    return [own for own, _ in found]
