"""A chunk of answers while they are decoded: prompts read, then one step after another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor
from transformers import PreTrainedModel

from diva_engine.records import Prompt
from diva_engine.rollout.decoder import Decoder
from diva_engine.rollout.kv_cache import KeyValueCache
from diva_engine.rollout.prefill import prefill


class Decoding(Protocol):
    """What the engine's loop asks of a chunk of N answers."""

    first_logits: Tensor  # [N, V] of the answers' first tokens

    def step(self, tokens: Tensor) -> Tensor:
        """tokens [N] -> logits [N, V] of the tokens after them."""

    def keep(self, rows: Tensor) -> None:
        """Go on with the answers `rows` (indices, ascending) only."""


class PlainDecoding:
    """Answers to B prompts, row i to prompt `prompt_rows[i]` ([N] int64, ascending), of `max_tokens` at most."""

    def __init__(
        self, model: PreTrainedModel, prompts: Sequence[Prompt], prompt_rows: Tensor, pad_id: int, max_tokens: int
    ) -> None:
        read = prefill(model, prompts, pad_id)
        self._decoder = Decoder(model, int(read.next_positions.max()) + max_tokens)
        self._cache = KeyValueCache(read, prompt_rows)
        self._positions = read.next_positions[prompt_rows]
        self.first_logits = read.logits[prompt_rows]

    def step(self, tokens: Tensor) -> Tensor:
        logits = self._decoder.step(tokens, self._positions, self._cache)
        self._positions = self._positions + 1
        return logits

    def keep(self, rows: Tensor) -> None:
        self._positions = self._positions[rows]
        self._cache.keep(rows)
