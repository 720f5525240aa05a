"""update_difficulty on a table of 18,000 questions, beside its definition; the authors rewrite a dataset for it."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from bench.harness import OURS, Case, benchmark_cases
from diva_engine.ops import update_difficulty
from diva_engine.ops.update_difficulty import update_difficulty_reference


def cases(device: str) -> Iterator[Case]:
    for questions in (256, 512, 4096):
        table = torch.full((18_000,), 5.0, device=device)
        index = torch.randperm(18_000, device=device)[:questions]
        accuracy = torch.rand(questions, device=device)
        arguments = (table, index, accuracy)
        yield Case(
            "update_difficulty",
            f"{questions:,} of 18,000 questions",
            questions * (8 + 4 + 4 + 8),
            {
                OURS: lambda a=arguments: update_difficulty(*a),
                "torch, the definition": lambda a=arguments: update_difficulty_reference(*a),
            },
        )


test_update_difficulty = benchmark_cases(cases)
