"""One decoding step of a Qwen or Llama decoder, written out on the model's own weights.

transformers' own forward spends most of a small step on bookkeeping; here a step is the arithmetic alone. Modules are
opened, not called: a call's Python costs as much as a product of a few rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from diva_engine.ops.linear import linear
from diva_engine.rollout.kv_cache import KeyValueCache

SUPPORTED_MODEL_TYPES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen2", "qwen3", "llama")


@dataclass(frozen=True)
class _Linear:
    weight: Tensor
    bias: Tensor | None

    def __call__(self, states: Tensor) -> Tensor:
        return linear(states, self.weight, self.bias)


@dataclass(frozen=True)
class _RmsNorm:
    weight: Tensor  # broadcast over what is normalised
    epsilon: float

    def __call__(self, states: Tensor) -> Tensor:
        """In float32 up to the weight, as the models define it."""
        if states.dtype == torch.float32 and self.weight.ndim == 1:
            return F.rms_norm(states, self.weight.shape, self.weight, self.epsilon)  # the same bits in one call
        normed = F.rms_norm(states.float(), states.shape[-1:], None, self.epsilon)
        return self.weight * normed.to(states.dtype)


@dataclass(frozen=True)
class _Layer:
    """What a step needs of one decoder layer; the three projections of its attention are fused into one."""

    attention_norm: _RmsNorm
    qkv: _Linear
    qk_norm: _RmsNorm | None  # of every query and key head
    output: _Linear
    mlp_norm: _RmsNorm
    gate: _Linear
    up: _Linear
    down: _Linear
    activation: Callable[[Tensor], Tensor]

    def mlp(self, states: Tensor) -> Tensor:
        return self.down(self.activation(self.gate(states)) * self.up(states))


class Decoder:
    """Decodes with the weights the model has when the decoder is made. Positions run to `num_positions` - 1."""

    def __init__(self, model: PreTrainedModel, num_positions: int) -> None:
        config = model.config.get_text_config()
        self._text_model = getattr(model.model, "language_model", model.model)
        self._num_heads = config.num_attention_heads
        self._num_kv_heads = config.num_key_value_heads
        self._head_size = self._text_model.layers[0].self_attn.head_dim
        self._layers = [self._open(layer) for layer in self._text_model.layers]
        self._norm = _open_norm(self._text_model.norm)
        self._head = _open_linear(model.lm_head)
        self._cos, self._sin = self._rotations(num_positions, num_axes=3 if hasattr(model.model, "visual") else 1)

    def step(self, tokens: Tensor, positions: Tensor, cache: KeyValueCache) -> Tensor:
        """tokens [N], positions [N] -> logits [N, V] of the tokens after them; the cache takes them in."""
        cache.open_place()
        cos, sin = self._cos.index_select(0, positions), self._sin.index_select(0, positions)
        hidden = self._text_model.embed_tokens(tokens)
        for index, layer in enumerate(self._layers):
            heads = self._project(layer, layer.attention_norm(hidden), cos, sin)
            query = heads[:, : self._num_heads].unflatten(1, (-1, self._num_kv_heads))
            attended = cache.attend(index, query, heads[:, self._num_heads :])
            hidden = hidden + layer.output(attended.transpose(1, 2).flatten(1))
            hidden = hidden + layer.mlp(layer.mlp_norm(hidden))
        return self._head(self._norm(hidden))

    def _rotations(self, num_positions: int, num_axes: int) -> tuple[Tensor, Tensor]:
        """Cosine and sine [num_positions, 1, head size] of text positions, which are the same on all axes; the sine's
        first half is negated: see `_rotate`."""
        positions = torch.arange(num_positions, device=self._head.weight.device)[None]
        if num_axes > 1:
            positions = positions.expand(num_axes, 1, -1)
        cos, sin = self._text_model.rotary_emb(self._head.weight, positions)
        # Older transformers return one rotation an axis, [3, 1, positions, head size], newer ones [1, positions, ...].
        cos, sin = cos.flatten(0, -3)[0][:, None], sin.flatten(0, -3)[0][:, None]
        first, second = sin.chunk(2, dim=-1)
        return cos, torch.cat([-first, second], dim=-1)

    def _project(self, layer: _Layer, hidden: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """hidden [N, hidden size] -> query heads, key heads, value heads [N, all of them, head size], rotated.

        Query heads that share a key head do not stand side by side: the first of each key head, the second, ...
        """
        heads = layer.qkv(hidden).unflatten(-1, (-1, self._head_size))
        query_and_key = heads[:, : self._num_heads + self._num_kv_heads]
        if layer.qk_norm is not None:
            query_and_key.copy_(layer.qk_norm(query_and_key))
        _rotate(query_and_key, cos, sin)
        return heads

    def _open(self, layer: Any) -> _Layer:
        attention, mlp = layer.self_attn, layer.mlp
        return _Layer(
            attention_norm=_open_norm(layer.input_layernorm),
            qkv=self._fuse([attention.q_proj, attention.k_proj, attention.v_proj]),
            qk_norm=self._fuse_norms(attention.q_norm, attention.k_norm) if hasattr(attention, "q_norm") else None,
            output=_open_linear(attention.o_proj),
            mlp_norm=_open_norm(layer.post_attention_layernorm),
            gate=_open_linear(mlp.gate_proj),
            up=_open_linear(mlp.up_proj),
            down=_open_linear(mlp.down_proj),
            activation=mlp.act_fn,
        )

    def _fuse(self, projections: Sequence[Any]) -> _Linear:
        """Projections of query, key and value -> one, with the query heads in the order of `_project`."""
        query, key, value = ([p.weight, p.bias] for p in projections)
        weight, bias = (
            None if of_query is None else torch.cat([self._reordered(of_query), of_key, of_value])
            for of_query, of_key, of_value in zip(query, key, value, strict=True)
        )
        return _Linear(weight, bias)

    def _reordered(self, of_query: Tensor) -> Tensor:
        """[heads * head size, ...], heads sorted by the key head they share -> the same, as `_project` has them."""
        return of_query.unflatten(0, (self._num_kv_heads, -1, self._head_size)).transpose(0, 1).flatten(0, 2)

    def _fuse_norms(self, of_query: Any, of_key: Any) -> _RmsNorm:
        query, key = _open_norm(of_query), _open_norm(of_key)
        weights = [query.weight.expand(self._num_heads, -1), key.weight.expand(self._num_kv_heads, -1)]
        return _RmsNorm(torch.cat(weights), query.epsilon)


def _open_linear(module: Any) -> _Linear:
    return _Linear(module.weight, module.bias)


def _open_norm(module: Any) -> _RmsNorm:
    return _RmsNorm(module.weight, module.variance_epsilon)


def _rotate(states: Tensor, cos: Tensor, sin: Tensor) -> None:
    """states [N, heads, head size], in place; cos and sin [N, 1, head size].

    The definition, states * cos + cat([-second, first]) * sin, with the sign in the sine.
    """
    first, second = states.chunk(2, dim=-1)
    swapped = torch.cat([second, first], dim=-1)
    states.mul_(cos).addcmul_(swapped, sin)
