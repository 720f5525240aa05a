"""diva_advantage at the paper's sizes and beyond, beside its definition and torch.compile of it.

And asked for nothing but GRPO's z-score within each prompt, beside the same from group_stats and verl's own code.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from bench.advantage_peers import grpo_peers
from bench.harness import OURS, Case, benchmark_cases
from diva_engine.algorithm.advantages import group_zscore
from diva_engine.ops import diva_advantage
from diva_engine.ops.diva_advantage import diva_advantage_reference

ONLY_GRPO = {"weight": "none", "rrb": "none", "balance": "none", "w_global": 0.0}


def cases(device: str) -> Iterator[Case]:
    compiled = torch.compile(diva_advantage_reference)
    for questions, prompts_each, rollouts_each in ((256, 2, 5), (512, 2, 5), (512, 4, 5), (512, 4, 8), (8192, 2, 8)):
        prompts = questions * prompts_each
        rewards = (torch.rand(prompts * rollouts_each, device=device) < 0.5).float()
        difficulty = 1 + 8 * torch.rand(prompts, device=device)
        prompt_offsets = torch.arange(0, len(rewards) + 1, rollouts_each, device=device)
        question_offsets = torch.arange(0, prompts + 1, prompts_each, device=device)
        arguments = (rewards, prompt_offsets, question_offsets, difficulty)
        size = f"{len(rewards):,} = {questions} x {prompts_each} x {rollouts_each}"
        bytes_moved = sum(tensor.nbytes for tensor in arguments) + 3 * rewards.nbytes
        yield Case(
            "diva_advantage",
            size,
            bytes_moved,
            {
                OURS: lambda a=arguments: diva_advantage(*a),
                "torch, the definition": lambda a=arguments: diva_advantage_reference(*a),
                "torch.compile of it": lambda a=arguments: compiled(*a),
            },
        )
        yield Case(
            "diva_advantage",
            f"{size}, only GRPO",
            bytes_moved,
            {
                OURS: lambda a=arguments: diva_advantage(*a, **ONLY_GRPO),
                "diva_engine, from group_stats": lambda a=arguments: group_zscore(*a[:2]),
                **grpo_peers(rewards, rollouts_each),
            },
        )


test_diva_advantage = benchmark_cases(cases)
