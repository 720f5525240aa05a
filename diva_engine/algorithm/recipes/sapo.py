"""SAPO (arXiv 2511.20347): a smooth gate in place of the clip.

A token's weight falls off as its ratio leaves 1, sooner where the advantage is negative: such tokens push probability
to the whole rest of the vocabulary and are the less stable ones.
"""

from __future__ import annotations

from diva_engine.algorithm.losses import sapo_loss
from diva_engine.algorithm.plans import ask_originals
from diva_engine.algorithm.recipes.grpo import credit
from diva_engine.algorithm.recipes.recipe import Recipe

RECIPE = Recipe(
    summary="SAPO: GRPO's advantage under a soft gate of the ratio",
    plan=ask_originals,
    credit=credit,
    loss=sapo_loss,
    defaults={
        "worker.actor.tau_positive": 1.0,
        "worker.actor.tau_negative": 1.05,
        "worker.actor.loss_avg_mode": "seq",
    },
)
