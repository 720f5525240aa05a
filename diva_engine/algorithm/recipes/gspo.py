"""GSPO (arXiv 2507.18071): GRPO's advantage, one importance ratio an answer.

The reward belongs to the answer, so the ratio and its clip do too: exp(mean of the tokens' log-ratios). Such means move
little, hence the narrow clip.
"""

from __future__ import annotations

from diva_engine.algorithm.losses import sequence_policy_loss
from diva_engine.algorithm.plans import ask_originals
from diva_engine.algorithm.recipes.grpo import credit
from diva_engine.algorithm.recipes.recipe import Recipe

RECIPE = Recipe(
    summary="GSPO: GRPO's advantage, one ratio and one clip an answer",
    plan=ask_originals,
    credit=credit,
    loss=sequence_policy_loss,
    defaults={
        "worker.actor.clip_ratio_low": 3e-4,
        "worker.actor.clip_ratio_high": 4e-4,
        "worker.actor.loss_avg_mode": "seq",
    },
)
