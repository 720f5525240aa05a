"""group_stats beside its definition, torch.compile of it, and the dense form that only equal groups allow."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from bench.harness import OURS, Case, benchmark_cases
from diva_engine.ops import group_stats
from diva_engine.ops.group_stats import group_stats_reference


def dense(values: Tensor, size: int) -> tuple[Tensor, ...]:
    rows = values.view(-1, size)
    return rows.mean(1), rows.std(1), rows.amin(1), rows.amax(1)


def cases(device: str) -> Iterator[Case]:
    compiled = torch.compile(group_stats_reference)
    for count, size in ((2560, 5), (5120, 5), (5120, 10), (65536, 8), (1 << 20, 16)):
        values = torch.rand(count, device=device)
        offsets = torch.arange(0, count + 1, size, device=device)
        yield Case(
            "group_stats",
            f"{count:,} rewards in groups of {size}",
            values.nbytes + offsets.nbytes + 16 * (len(offsets) - 1),
            {
                OURS: lambda v=values, o=offsets: group_stats(v, o),
                "torch, the definition": lambda v=values, o=offsets: group_stats_reference(v, o),
                "torch.compile of it": lambda v=values, o=offsets: compiled(v, o),
                "torch, equal groups only": lambda v=values, n=size: dense(v, n),
            },
        )


test_group_stats = benchmark_cases(cases)
