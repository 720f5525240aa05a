"""What the policy's own vision tower sees."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate

import torch
from torch import Tensor

from diva_engine.distributed import max_over_all
from diva_engine.policy.model import Policy
from diva_engine.policy.padding import padding_tree
from diva_engine.records import Prompt

_MAX_PATCHES = 1 << 14  # before the merger, that go through the tower together


@torch.no_grad()
def image_features(policy: Policy, prompts: Sequence[Prompt]) -> tuple[Tensor, Tensor]:
    """The patch features of the prompts' images after the merger, as the language model gets them.

    Returns features [P, d] and offsets [B + 1] int64, image after image in the order of the prompts; an image of h x w
    patches has h * w / merge_size ** 2 features. A collective call, in which each rank gives prompts of its own.
    """
    features: list[Tensor] = []
    batches = list(_batches([prompt for prompt in prompts if prompt.pixel_values is not None]))
    num_passes = max_over_all(len(batches))
    for batch in batches:
        features += policy.run(_features, policy, batch)
    for _ in range(num_passes - len(batches)):
        policy.run(_features, policy, [padding_tree(policy).prompt])  # for the other ranks
    offsets = torch.tensor([0, *accumulate(len(found) for found in features)], device=policy.device)
    return torch.cat(features) if features else torch.zeros(0, 1, device=policy.device), offsets


def _features(policy: Policy, prompts: Sequence[Prompt]) -> Sequence[Tensor]:
    pixels = torch.cat([prompt.pixel_values for prompt in prompts]).to(policy.device)
    grids = torch.cat([prompt.image_grid_thw for prompt in prompts]).to(policy.device)
    found: Sequence[Tensor] = policy.model.model.get_image_features(pixels, grids).pooler_output
    return found


def _batches(prompts: Sequence[Prompt]) -> Iterator[list[Prompt]]:
    """In order, as many together as the tower takes at once."""
    batch: list[Prompt] = []
    num_patches = 0
    for prompt in prompts:
        if batch and num_patches + len(prompt.pixel_values) > _MAX_PATCHES:
            yield batch
            batch, num_patches = [], 0
        batch.append(prompt)
        num_patches += len(prompt.pixel_values)
    if batch:
        yield batch
