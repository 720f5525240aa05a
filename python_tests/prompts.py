"""Prompts for tests of the model side, built with transformers' own image processor and position ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import PreTrainedModel

from diva_engine.records import Processor, Prompt


def random_image(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def make_prompt(
    model: PreTrainedModel,
    processor: Processor,
    text: str,
    images: Sequence[Image.Image] = (),
    prefix: str = "",
) -> Prompt:
    """A user turn showing `images`, then `text`; the answer is forced to begin with `prefix`."""
    content: list[dict[str, Any]] = [{"type": "image"} for _ in images] + [{"type": "text", "text": text}]
    chat = [{"role": "user", "content": content}]
    rendered = processor.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    ids = processor.tokenizer.encode(rendered, add_special_tokens=False)
    prefix_ids = tuple(processor.tokenizer.encode(prefix, add_special_tokens=False)) if prefix else ()
    if not images:
        positions = torch.arange(len(ids)).expand(3, -1)
        return Prompt(token_ids=tuple(ids), position_ids=positions, text=rendered, prefix_ids=prefix_ids)
    features = processor.image_processor(images=list(images), return_tensors="pt")
    ids = _expand_placeholders(ids, features["image_grid_thw"], processor)
    positions = _rope_positions(model, ids, features["image_grid_thw"], processor)
    return Prompt(
        token_ids=tuple(ids),
        position_ids=positions,
        pixel_values=features["pixel_values"],
        image_grid_thw=features["image_grid_thw"],
        images=tuple(images),
        text=rendered,
        prefix_ids=prefix_ids,
    )


def _expand_placeholders(ids: list[int], grids: torch.Tensor, processor: Processor) -> list[int]:
    counts = iter((grids.prod(-1) // processor.merge_size**2).tolist())
    expanded: list[int] = []
    for token in ids:
        expanded += [token] * next(counts) if token == processor.image_token_id else [token]
    return expanded


def _rope_positions(model: PreTrainedModel, ids: list[int], grids: torch.Tensor, processor: Processor) -> torch.Tensor:
    token_ids = torch.tensor([ids])
    kinds = (token_ids == processor.image_token_id).int()
    return model.model.get_rope_index(token_ids, mm_token_type_ids=kinds, image_grid_thw=grids)[0][:, 0]
