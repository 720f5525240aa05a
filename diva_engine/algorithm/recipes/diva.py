"""DIVA-GRPO (arXiv 2603.01106): variants of matching difficulty; local and global advantage, weighted by difficulty.

A rollout is compared with the other answers to its own prompt (local) and with all answers to its question (global).
Each advantage is z-scored over the step's rollouts, the global one is weighted by how hard its variant is among the
question's prompts, both are rescaled by the range of their group's rewards, and summed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from diva_engine import ops
from diva_engine.algorithm.advantages import diva_terms, prompt_offsets, question_offsets, rewards_of
from diva_engine.algorithm.losses import clipped_policy_loss
from diva_engine.algorithm.plans import ask_originals_and_variants
from diva_engine.algorithm.recipes.recipe import Recipe
from diva_engine.config import Config
from diva_engine.records import Credit, ScoredGroup


def credit(groups: Sequence[ScoredGroup], config: Config) -> Credit:
    lengths = [len(rollout.token_ids) for group in groups for rollout in group.rollouts]
    result = ops.diva_advantage(
        rewards_of(groups),
        prompt_offsets(groups),
        question_offsets(groups),
        torch.tensor([group.variant.difficulty for group in groups]),
        lengths=torch.tensor(lengths),
        max_length=config.data.max_response_length,
        **diva_terms(config.advantage),
    )
    return Credit(result.advantage, prefix_weight=torch.zeros(len(groups)))


RECIPE = Recipe(
    summary="DIVA-GRPO: variants of matching difficulty, local and global advantage; reads reference steps",
    plan=ask_originals_and_variants,
    credit=credit,
    loss=clipped_policy_loss,
    defaults={"variants.num": 1, "advantage.rrb": "range"},
    authors_defaults={
        "difficulty.rule": "steps",
        "advantage.rrb": "threshold",
        "advantage.balance": "padded_tokens",
    },
)
