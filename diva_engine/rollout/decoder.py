"""One decoding step of a Qwen or Llama decoder, written out on the model's own weights.

transformers' own forward spends most of a small step on bookkeeping; here a step is the arithmetic alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from diva_engine.ops.linear import linear
from diva_engine.rollout.kv_cache import KeyValueCache

SUPPORTED_MODEL_TYPES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen2", "qwen3", "llama")


@dataclass(frozen=True)
class _Layer:
    """What a step needs of one decoder layer; the three projections of its attention are fused into one."""

    module: Any
    qkv_weight: Tensor
    qkv_bias: Tensor | None


class Decoder:
    """Decodes with the weights the model has when the decoder is made. Positions run to `num_positions` - 1."""

    def __init__(self, model: PreTrainedModel, num_positions: int) -> None:
        config = model.config.get_text_config()
        self._text_model = getattr(model.model, "language_model", model.model)
        self._head = model.lm_head
        self._num_heads = config.num_attention_heads
        self._num_kv_heads = config.num_key_value_heads
        self._head_size = self._text_model.layers[0].self_attn.head_dim
        self._layers = [_fuse_projections(layer) for layer in self._text_model.layers]
        self._cos, self._sin = self._rotations(num_positions, num_axes=3 if hasattr(model.model, "visual") else 1)

    def step(self, tokens: Tensor, positions: Tensor, cache: KeyValueCache) -> Tensor:
        """tokens [N], positions [N] -> logits [N, V] of the tokens after them; the cache takes them in."""
        cache.open_place()
        cos, sin = self._cos[positions], self._sin[positions]
        hidden = self._text_model.embed_tokens(tokens)
        for index, layer in enumerate(self._layers):
            module = layer.module
            query, key, value = self._project(layer, module.input_layernorm(hidden))
            grouped = _rotate(query, cos, sin).unflatten(1, (self._num_kv_heads, -1))
            attended = cache.attend(index, grouped, _rotate(key, cos, sin), value)
            hidden = hidden + module.self_attn.o_proj(attended.flatten(1))
            hidden = hidden + module.mlp(module.post_attention_layernorm(hidden))
        return self._head(self._text_model.norm(hidden))

    def _rotations(self, num_positions: int, num_axes: int) -> tuple[Tensor, Tensor]:
        """Cosine and sine [num_positions, 1, head size] of text positions; they are the same on all axes."""
        positions = torch.arange(num_positions, device=self._head.weight.device)[None]
        if num_axes > 1:
            positions = positions.expand(num_axes, 1, -1)
        cos, sin = self._text_model.rotary_emb(self._head.weight, positions)
        # Older transformers return one rotation an axis, [3, 1, positions, head size], newer ones [1, positions, ...].
        return cos.flatten(0, -3)[0][:, None], sin.flatten(0, -3)[0][:, None]

    def _project(self, layer: _Layer, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """hidden [N, hidden size] -> query [N, heads, head size], key and value [N, key-value heads, head size]."""
        fused = linear(hidden, layer.qkv_weight, layer.qkv_bias).unflatten(-1, (-1, self._head_size))
        query, key, value = fused.split([self._num_heads, self._num_kv_heads, self._num_kv_heads], dim=1)
        attention = layer.module.self_attn
        if hasattr(attention, "q_norm"):
            query, key = attention.q_norm(query), attention.k_norm(key)
        return query, key, value


def _rotate(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """states [N, heads, head size], cos and sin [N, 1, head size]."""
    first, second = states.chunk(2, dim=-1)
    return states * cos + torch.cat([-second, first], dim=-1) * sin


def _fuse_projections(layer: Any) -> _Layer:
    attention = layer.self_attn
    projections = [attention.q_proj, attention.k_proj, attention.v_proj]
    weight = torch.cat([projection.weight for projection in projections])
    biases = [projection.bias for projection in projections]
    return _Layer(layer, weight, None if biases[0] is None else torch.cat(biases))
