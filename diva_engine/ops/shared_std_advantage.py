"""Durian's advantage: each prompt's own mean, one std for all prompts of a bin."""

from __future__ import annotations

import torch
from torch import Tensor

from diva_engine.ops import library
from diva_engine.ops.group_stats import group_stats_reference


def shared_std_advantage(
    rewards: Tensor,  # [N] float32; float64 on the CPU too
    prompt_offsets: Tensor,  # [P+1] int64 over rollouts
    bin_of_prompt: Tensor,  # [P] int64 in [0, num_bins)
    num_bins: int,
    eps: float = 1e-6,
) -> Tensor:  # [N]
    """(reward - mean of its prompt) / (sample std of all rewards in the prompt's bin + eps).

    A bin is a level of difficulty, perceptual or of reasoning. A bin of equal rewards, or of one, gives exactly 0; an
    empty bin is allowed. The CPU refuses a bin out of range; on CUDA, where nothing waits, its rollouts become NaN. No
    gradient.
    """
    library.refuse_gradient("shared_std_advantage", rewards=rewards)
    op = torch.ops.diva_engine.shared_std_advantage.default
    advantage: Tensor = op(rewards, prompt_offsets, bin_of_prompt, num_bins, eps)
    return advantage


def shared_std_advantage_reference(
    rewards: Tensor, prompt_offsets: Tensor, bin_of_prompt: Tensor, num_bins: int, eps: float = 1e-6
) -> Tensor:
    """The definition, in plain torch."""
    sizes = prompt_offsets.diff()
    deviation = rewards - group_stats_reference(rewards, prompt_offsets).mean.repeat_interleave(sizes)

    bin_ = bin_of_prompt.repeat_interleave(sizes)  # [N]
    bin_sizes = torch.bincount(bin_, minlength=num_bins)
    bin_offsets = torch.cat((bin_sizes.new_zeros(1), bin_sizes.cumsum(0)))
    std = group_stats_reference(rewards[bin_.argsort(stable=True)], bin_offsets).std
    return deviation / (std[bin_] + eps)


@torch.library.register_fake("diva_engine::shared_std_advantage")
def _fake(rewards: Tensor, *_: object) -> Tensor:
    return torch.empty_like(rewards)
