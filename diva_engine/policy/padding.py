"""A tree that trains nothing: it lets a rank take part in a forward and backward for which it has no work.

Sharded weights are gathered and gradients reduced block by block, by all ranks together. A rank without a tree, or with
trees without pictures while others have some, would leave them waiting.
"""

from __future__ import annotations

import torch

from diva_engine.policy.model import Policy
from diva_engine.records import AnswerTree, Prompt


def padding_tree(policy: Policy) -> AnswerTree:
    """The smallest tree that reaches every weight: one token, one picture of one feature where the model sees."""
    stop_id = policy.processor.stop_ids[0]
    if policy.processor.image_token_id is None:
        prompt = Prompt((stop_id,), torch.zeros(3, 1, dtype=torch.int64))
    else:
        merge_size = policy.processor.merge_size
        patch_size = policy.model.model.visual.patch_embed.proj.weight.shape[1:].numel()
        prompt = Prompt(
            token_ids=(stop_id, policy.processor.image_token_id),
            position_ids=torch.arange(2).expand(3, -1),
            pixel_values=torch.zeros(merge_size**2, patch_size),
            image_grid_thw=torch.tensor([[1, merge_size, merge_size]]),
        )
    return AnswerTree(prompt, ((stop_id,),))
