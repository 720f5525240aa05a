"""CISPO (MiniMax-M1, arXiv 2506.13585): the importance ratio is clipped, no token is.

Where PPO's clip takes the gradient away from the rare tokens that an update wants most, CISPO only bounds their weight.
MiniMax leaves the lower bound out; the upper one, 1 + 4, is that of ScaleRL (arXiv 2510.13786).
"""

from __future__ import annotations

from diva_engine.algorithm.losses import cispo_loss
from diva_engine.algorithm.plans import ask_originals
from diva_engine.algorithm.recipes.grpo import credit
from diva_engine.algorithm.recipes.recipe import Recipe

RECIPE = Recipe(
    summary="CISPO: GRPO's advantage times a bounded ratio; every token keeps its gradient",
    plan=ask_originals,
    credit=credit,
    loss=cispo_loss,
    defaults={"worker.actor.clip_ratio_low": 1.0, "worker.actor.clip_ratio_high": 4.0},
)
