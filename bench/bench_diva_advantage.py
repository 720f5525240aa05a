"""diva_advantage at the paper's sizes and beyond, beside its definition and torch.compile of it."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from bench.harness import OURS, Case, benchmark_cases
from diva_engine.ops import diva_advantage
from diva_engine.ops.diva_advantage import diva_advantage_reference


def cases(device: str) -> Iterator[Case]:
    compiled = torch.compile(diva_advantage_reference)
    for questions, prompts_each, rollouts_each in ((256, 2, 5), (512, 2, 5), (512, 4, 5), (512, 4, 8), (8192, 2, 8)):
        prompts = questions * prompts_each
        rewards = (torch.rand(prompts * rollouts_each, device=device) < 0.5).float()
        difficulty = 1 + 8 * torch.rand(prompts, device=device)
        prompt_offsets = torch.arange(0, len(rewards) + 1, rollouts_each, device=device)
        question_offsets = torch.arange(0, prompts + 1, prompts_each, device=device)
        arguments = (rewards, prompt_offsets, question_offsets, difficulty)
        yield Case(
            "diva_advantage",
            f"{len(rewards):,} = {questions} x {prompts_each} x {rollouts_each}",
            sum(tensor.nbytes for tensor in arguments) + 3 * rewards.nbytes,
            {
                OURS: lambda a=arguments: diva_advantage(*a),
                "torch, the definition": lambda a=arguments: diva_advantage_reference(*a),
                "torch.compile of it": lambda a=arguments: compiled(*a),
            },
        )


test_diva_advantage = benchmark_cases(cases)
