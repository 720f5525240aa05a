"""The training forward: log-probabilities of sampled answers under the policy, differentiable."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from diva_engine.ops import token_logprob
from diva_engine.policy.attention import lay_out_row
from diva_engine.policy.model import VISION_MODEL_TYPES, Policy
from diva_engine.policy.packing import PackedRow, pack_trees
from diva_engine.policy.padding import padding_tree
from diva_engine.records import AnswerTree

# Logits that exist at one time: 64 MiB in float32. Larger batches go through the language-model head in chunks, whose
# logits the backward pass computes again.
LOGITS_PER_CHUNK = 1 << 24


def answer_logprobs(policy: Policy, trees: Sequence[AnswerTree], *, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """One forward pass over `trees`: (logprob [T], entropy [T]), float32, in the token order of AnswerTree.

    The trees lie end to end in one row: of each, prompt, image and forced prefix are read once, and its branches see
    them and themselves.
    Banned ids are masked as in the sampler, so both give the same number for the same token. Over sharded weights this
    is a collective call, and `trees` may be empty.
    """
    if not (policy.is_sharded and _needs_padding(policy, trees)):
        return policy.run(_row_logprobs, policy, pack_trees(trees), temperature)
    row = pack_trees([*trees, padding_tree(policy)])
    logprob, entropy = policy.run(_row_logprobs, policy, row, temperature)
    # The padding's one token is in the graph, so that its gradients exist, and they are 0.
    return logprob[:-1] + 0.0 * logprob[-1], entropy[:-1]


def _needs_padding(policy: Policy, trees: Sequence[AnswerTree]) -> bool:
    """Whether the trees leave weights of the model unread."""
    sees = policy.processor.image_token_id is not None
    return not trees or (sees and all(tree.prompt.pixel_values is None for tree in trees))


def _row_logprobs(policy: Policy, row: PackedRow, temperature: float) -> tuple[Tensor, Tensor]:
    hidden = _hidden_states(policy, row).index_select(0, row.predictors.to(policy.device))
    return _token_logprobs(policy, hidden, row.targets.to(policy.device), temperature)


def _hidden_states(policy: Policy, row: PackedRow) -> Tensor:
    """[W, hidden size] of the last layer; pictures run through the vision tower once each."""
    model, device = policy.model, policy.device
    inputs: dict[str, Any] = {
        "input_ids": row.token_ids[None].to(device),
        "position_ids": row.position_ids[:, None].to(device),
        "packed_layout": lay_out_row(policy.attn_implementation, row.shapes, device),
        # A mask of four dimensions is left alone; without one transformers would make its own from the positions.
        "attention_mask": torch.zeros(1, 1, 1, 1, device=device),
        "use_cache": False,
    }
    if model.config.model_type not in VISION_MODEL_TYPES:
        inputs["position_ids"] = inputs["position_ids"][0]
    elif row.pixel_values is not None and row.image_grid_thw is not None:
        inputs["pixel_values"] = row.pixel_values.to(device)
        inputs["image_grid_thw"] = row.image_grid_thw.to(device)
    return model.model(**inputs).last_hidden_state[0]


def _token_logprobs(policy: Policy, hidden: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """hidden [T, hidden size], targets [T] -> logprob [T], entropy [T]; the logits of the whole batch never exist."""
    banned = torch.tensor(policy.processor.banned_ids, dtype=torch.int64, device=hidden.device)

    def of_chunk(hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        logits = policy.model.lm_head(hidden)
        with torch.no_grad():  # a logit of -inf gets no gradient, so autograd need not know
            logits.index_fill_(1, banned, float("-inf"))
        return token_logprob(logits, targets, temperature, inplace_backward=True)

    chunk_size = max(1, LOGITS_PER_CHUNK // policy.model.lm_head.weight.shape[0])
    if len(targets) <= chunk_size:
        return of_chunk(hidden, targets)
    chunks = [
        checkpoint(of_chunk, *chunk, use_reentrant=False)
        for chunk in zip(hidden.split(chunk_size), targets.split(chunk_size), strict=True)
    ]
    logprobs, entropies = zip(*chunks, strict=True)
    return torch.cat(logprobs), torch.cat(entropies)
