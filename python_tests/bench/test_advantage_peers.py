"""Whom diva_advantage races computes the same numbers."""

from __future__ import annotations

import pytest
import torch

from bench.advantage_peers import VERL, grpo_peers
from bench.bench_diva_advantage import ONLY_GRPO
from diva_engine.algorithm.advantages import group_zscore
from diva_engine.ops import diva_advantage

ROLLOUTS_EACH = 5
REWARDS = torch.tensor([1, 0, 0, 1, 1, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 0.25, 0.5, 0, 1, 0.75])
OFFSETS = torch.arange(0, len(REWARDS) + 1, ROLLOUTS_EACH)


def test_only_grpo_is_the_zscore_within_prompts():
    advantage = diva_advantage(REWARDS, OFFSETS, torch.tensor([0, 2, 4]), torch.ones(4), **ONLY_GRPO).advantage
    torch.testing.assert_close(advantage, group_zscore(REWARDS, OFFSETS))


@pytest.mark.parametrize("name", VERL)
def test_verl_computes_the_same(name):
    peers = grpo_peers(REWARDS, ROLLOUTS_EACH)
    if not peers:
        pytest.skip("verl is not installed")
    torch.testing.assert_close(peers[name](), group_zscore(REWARDS, OFFSETS))
