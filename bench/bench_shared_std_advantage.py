"""shared_std_advantage (Durian) beside its definition and torch.compile of it."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from bench.harness import OURS, Case, benchmark_cases
from diva_engine.ops import shared_std_advantage
from diva_engine.ops.shared_std_advantage import shared_std_advantage_reference

NUM_BINS = 12


def cases(device: str) -> Iterator[Case]:
    compiled = torch.compile(shared_std_advantage_reference)
    for prompts, rollouts_each in ((512, 5), (512, 10), (8192, 8)):
        rewards = (torch.rand(prompts * rollouts_each, device=device) < 0.5).float()
        offsets = torch.arange(0, len(rewards) + 1, rollouts_each, device=device)
        bins = torch.arange(prompts, device=device) % NUM_BINS
        arguments = (rewards, offsets, bins, NUM_BINS)
        yield Case(
            "shared_std_advantage",
            f"{len(rewards):,} = {prompts} x {rollouts_each}, {NUM_BINS} bins",
            2 * rewards.nbytes + offsets.nbytes + bins.nbytes,
            {
                OURS: lambda a=arguments: shared_std_advantage(*a),
                "torch, the definition": lambda a=arguments: shared_std_advantage_reference(*a),
                "torch.compile of it": lambda a=arguments: compiled(*a),
            },
        )


test_shared_std_advantage = benchmark_cases(cases)
