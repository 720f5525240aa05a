"""Keys and values of the answers being decoded."""

from __future__ import annotations

import torch
from torch import Tensor

from diva_engine.rollout.prefill import Prefill

_GROWTH = 64  # smallest number of places by which a full cache grows


class KeyValueCache:
    """N answers: per layer keys and values [N, key-value heads, capacity, head size], `length` places filled.

    All answers are aligned at the end of their left-padded prompts, so one step writes one place for all of them.
    """

    def __init__(self, prompts: Prefill, rows: Tensor) -> None:
        """rows [N] int64: the prompt of each answer, an index into the prefilled ones."""
        self.length = prompts.mask.shape[1]
        capacity = self.length + _GROWTH
        self._keys = [_with_capacity(keys[rows], capacity) for keys in prompts.keys]
        self._values = [_with_capacity(values[rows], capacity) for values in prompts.values]
        hidden_score = torch.finfo(self._keys[0].dtype).min  # not -inf: safe for every attention kernel
        bias = torch.zeros(prompts.mask.shape, dtype=self._keys[0].dtype, device=rows.device)
        bias.masked_fill_(~prompts.mask, hidden_score)
        self._bias = _with_capacity(bias[rows, None, :, None], capacity, fill=0.0)

    @property
    def attention_bias(self) -> Tensor:
        """[N, 1, 1, length], added to the scores: 0 at tokens, very negative at the prompts' padding."""
        return self._bias[:, :, : self.length].transpose(2, 3)

    def open_place(self) -> None:
        """Make room for the next token of every answer."""
        capacity = self._bias.shape[2]
        if self.length == capacity:
            capacity += max(_GROWTH, capacity // 2)
            self._keys = [_with_capacity(keys, capacity) for keys in self._keys]
            self._values = [_with_capacity(values, capacity) for values in self._values]
            self._bias = _with_capacity(self._bias, capacity, fill=0.0)
        self.length += 1

    def write(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Put key and value [N, heads, head size] at the open place; returns all filled places of the layer."""
        keys, values = self._keys[layer], self._values[layer]
        keys[:, :, self.length - 1] = key
        values[:, :, self.length - 1] = value
        return keys[:, :, : self.length], values[:, :, : self.length]

    def keep(self, rows: Tensor) -> None:
        """Drop all answers but `rows`."""
        self._keys = [keys[rows] for keys in self._keys]
        self._values = [values[rows] for values in self._values]
        self._bias = self._bias[rows]


def _with_capacity(filled: Tensor, capacity: int, fill: float | None = None) -> Tensor:
    """[N, heads, filled places, size] -> the same with `capacity` places; the new ones hold `fill`, or nothing yet."""
    num_rows, num_heads, num_filled, size = filled.shape
    grown = filled.new_empty(num_rows, num_heads, capacity, size)
    grown[:, :, :num_filled] = filled
    if fill is not None:
        grown[:, :, num_filled:] = fill
    return grown
