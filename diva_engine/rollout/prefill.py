"""Reading the prompts of a batch, pictures and forced prefixes included: once each, by transformers' own forward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache

from diva_engine.records import Prompt

# Prompt tokens, padding included, and image patches that go through the model together: enough to keep a GPU busy.
MAX_PREFILL_TOKENS = 1 << 13


@dataclass(frozen=True)
class Prefill:
    """B prompts read, left-padded to L places."""

    keys: list[Tensor]  # per layer [B, key-value heads, L, head size]
    values: list[Tensor]
    mask: Tensor  # [B, L] bool, False at padding
    next_positions: Tensor  # [B] int64: position of the first token of the answer's continuation
    logits: Tensor  # [B, V] of that token


def prefill(model: PreTrainedModel, prompts: Sequence[Prompt], pad_id: int) -> Prefill:
    """Read `prompts`, each followed by its forced prefix."""
    length = max(len(prompt.token_ids) + len(prompt.prefix_ids) for prompt in prompts)
    patches = max(0 if prompt.pixel_values is None else len(prompt.pixel_values) for prompt in prompts)
    batch_size = max(1, MAX_PREFILL_TOKENS // (length + patches))
    parts = [
        _prefill_batch(model, prompts[start : start + batch_size], length, pad_id)
        for start in range(0, len(prompts), batch_size)
    ]
    return Prefill(
        keys=[torch.cat(layer) for layer in zip(*(part.keys for part in parts), strict=True)],
        values=[torch.cat(layer) for layer in zip(*(part.values for part in parts), strict=True)],
        mask=torch.cat([part.mask for part in parts]),
        next_positions=torch.cat([part.next_positions for part in parts]),
        logits=torch.cat([part.logits for part in parts]),
    )


def _prefill_batch(model: PreTrainedModel, prompts: Sequence[Prompt], length: int, pad_id: int) -> Prefill:
    inputs, next_positions = _left_padded(prompts, length, pad_id)
    if not hasattr(model.model, "language_model"):
        inputs["position_ids"] = inputs["position_ids"][0]  # a text model has one axis of positions
    inputs = {name: value.to(model.device) for name, value in inputs.items()}
    cache = DynamicCache(config=model.config.get_text_config())
    output = model.model(**inputs, past_key_values=cache, use_cache=True)
    layers: list[Any] = cache.layers
    return Prefill(
        keys=[layer.keys for layer in layers],
        values=[layer.values for layer in layers],
        mask=inputs["attention_mask"].bool(),
        next_positions=next_positions.to(model.device),
        logits=model.lm_head(output.last_hidden_state[:, -1]),
    )


def _left_padded(prompts: Sequence[Prompt], length: int, pad_id: int) -> tuple[dict[str, Any], Tensor]:
    token_ids = torch.full((len(prompts), length), pad_id, dtype=torch.int64)
    position_ids = torch.zeros(3, len(prompts), length, dtype=torch.int64)
    mask = torch.zeros(len(prompts), length, dtype=torch.int64)
    next_positions = torch.zeros(len(prompts), dtype=torch.int64)
    for row, prompt in enumerate(prompts):
        tokens = prompt.token_ids + prompt.prefix_ids
        first_free = int(prompt.position_ids.max()) + 1
        next_positions[row] = first_free + len(prompt.prefix_ids)
        prefix_positions = torch.arange(first_free, int(next_positions[row])).expand(3, -1)
        start = length - len(tokens)
        token_ids[row, start:] = torch.tensor(tokens)
        position_ids[:, row, start:] = torch.cat([prompt.position_ids, prefix_positions], dim=1)
        mask[row, start:] = 1
    inputs: dict[str, Any] = {"input_ids": token_ids, "attention_mask": mask, "position_ids": position_ids}
    pixels = [prompt.pixel_values for prompt in prompts if prompt.pixel_values is not None]
    grids = [prompt.image_grid_thw for prompt in prompts if prompt.image_grid_thw is not None]
    if pixels:
        inputs["pixel_values"] = torch.cat(pixels)
        inputs["image_grid_thw"] = torch.cat(grids)
    return inputs, next_positions
