"""GRPO's advantage by the library a user would pick instead: verl's own functions, where verl is installed.

TRL is no peer: as of 1.16 its trainer computes advantages in the middle of the method that also generates and scores
the answers, so there is nothing of it to call.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

VERL = {
    "verl, compute_grpo_outcome_advantage": "compute_grpo_outcome_advantage",
    "verl, compute_grpo_vectorized_outcome_advantage": "compute_grpo_vectorized_outcome_advantage",
}


def grpo_peers(rewards: Tensor, rollouts_each: int) -> dict[str, Callable[[], Tensor]]:
    """(reward - mean) / (std + 1e-6) within each prompt, [N]; nothing where verl is missing.

    verl's functions take the rewards of tokens and hand the advantage to every token. Responses of one token leave
    them nothing but the advantage itself, and integers as prompt ids are quicker for them than the strings they get in
    its trainer.
    """
    try:
        verl = importlib.import_module("verl.trainer.ppo.core_algos")
    except ImportError:
        return {}
    of_tokens, mask = rewards[:, None], torch.ones_like(rewards)[:, None]
    prompt = np.arange(len(rewards)) // rollouts_each

    def run(function: Callable[..., tuple[Tensor, Tensor]]) -> Tensor:
        advantage, _ = function(of_tokens, mask, prompt, epsilon=1e-6)
        return advantage[:, 0]

    return {name: partial(run, getattr(verl, function)) for name, function in VERL.items()}
