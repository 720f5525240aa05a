"""Keys and values of the answers being decoded, and attention over them. A prompt's are kept once for all its answers.

Reading the prompt's keys is most of a decoding step's memory traffic; here the queries of all answers to a prompt read
them together, in one matrix product, and each answer adds its own few tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from diva_engine.rollout.prefill import Prefill

_GROWTH = 64  # smallest number of places by which a full cache grows


class KeyValueCache:
    """N answers to B prompts of L places; per layer [B, heads, L, head size] and [N, heads, capacity, head size].

    `heads` counts key-value heads. The answers are sorted by prompt, and all have the same number of places filled.
    """

    def __init__(self, prompts: Prefill, prompt_of_answer: Tensor) -> None:
        """prompt_of_answer [N] int64, ascending: index of each answer's prompt."""
        self._prompt_keys, self._prompt_values = prompts.keys, prompts.values
        self._prompt_bias = _padding_bias(prompts.mask, prompts.keys[0].dtype)
        num_heads, _, head_size = prompts.keys[0].shape[1:]
        shape = (len(prompt_of_answer), num_heads, _GROWTH, head_size)
        self._keys = [keys.new_empty(shape) for keys in prompts.keys]
        self._values = [values.new_empty(shape) for values in prompts.values]
        self._length = 0
        self._arrange(prompt_of_answer)

    def open_place(self) -> None:
        """Make room for the next token of every answer."""
        if self._length == self._keys[0].shape[2]:
            self._keys = [_grown(keys) for keys in self._keys]
            self._values = [_grown(values) for values in self._values]
        self._length += 1

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Put key and value [N, heads, head size] at the open place, and let each answer see its prompt and itself.

        query [N, heads, queries, head size] -> the same shape; the query heads that share a key stand side by side.
        """
        self._keys[layer][:, :, self._length - 1] = key
        self._values[layer][:, :, self._length - 1] = value
        own_keys = self._keys[layer][:, :, : self._length]
        own_values = self._values[layer][:, :, : self._length]
        query = query * query.shape[-1] ** -0.5
        prompt_scores = self._to_slots(query) @ self._prompt_keys[layer].transpose(2, 3)
        if self._prompt_bias is not None:
            prompt_scores += self._prompt_bias
        scores = torch.cat([self._to_answers(prompt_scores), query @ own_keys.transpose(2, 3)], dim=-1)
        weights = scores.softmax(dim=-1, dtype=torch.float32).to(query.dtype)
        prompt_weights, own_weights = weights.split([scores.shape[-1] - self._length, self._length], dim=-1)
        of_prompt = self._to_answers(self._to_slots(prompt_weights) @ self._prompt_values[layer])
        return of_prompt + own_weights @ own_values

    def keep(self, answers: Tensor) -> None:
        """Drop all but `answers` (indices, ascending), and the prompts that are left without an answer."""
        self._keys = [keys[answers] for keys in self._keys]
        self._values = [values[answers] for values in self._values]
        prompts, prompt_of_answer = self._prompt_of_answer[answers].unique(return_inverse=True)
        if len(prompts) < len(self._prompt_keys[0]):
            self._prompt_keys = [keys[prompts] for keys in self._prompt_keys]
            self._prompt_values = [values[prompts] for values in self._prompt_values]
            self._prompt_bias = None if self._prompt_bias is None else self._prompt_bias[prompts]
        self._arrange(prompt_of_answer)

    def _arrange(self, prompt_of_answer: Tensor) -> None:
        """Give each answer a slot of its prompt; every prompt has as many slots as the largest group has answers."""
        num_answers, num_prompts = len(prompt_of_answer), len(self._prompt_keys[0])
        sizes = prompt_of_answer.bincount(minlength=num_prompts)
        first_of_prompt = sizes.cumsum(0) - sizes
        numbers = torch.arange(num_answers, device=prompt_of_answer.device)
        self._prompt_of_answer = prompt_of_answer
        self._slot_of_answer = numbers - first_of_prompt[prompt_of_answer]
        # Slots left over repeat answer 0; nothing reads what they compute.
        self._answer_of_slot = numbers.new_zeros(num_prompts, int(sizes.max()))
        self._answer_of_slot[prompt_of_answer, self._slot_of_answer] = numbers

    def _to_slots(self, of_answers: Tensor) -> Tensor:
        """[N, heads, queries, ...] -> [B, heads, slots * queries, ...]"""
        return of_answers[self._answer_of_slot].transpose(1, 2).flatten(2, 3)

    def _to_answers(self, of_slots: Tensor) -> Tensor:
        """[B, heads, slots * queries, ...] -> [N, heads, queries, ...]"""
        slots = of_slots.unflatten(2, (self._answer_of_slot.shape[1], -1)).transpose(1, 2)
        return slots[self._prompt_of_answer, self._slot_of_answer]


def _padding_bias(mask: Tensor, dtype: torch.dtype) -> Tensor | None:
    """mask [B, L], False at padding -> [B, 1, 1, L] to add to scores; None where nothing is padded."""
    if mask.all():
        return None
    bias = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
    return bias.masked_fill_(~mask, torch.finfo(dtype).min)[:, None, None]


def next_capacity(capacity: int) -> int:
    """Places of a cache that is full at `capacity`: half as many again, at least _GROWTH more."""
    return capacity + max(_GROWTH, capacity // 2)


def _grown(filled: Tensor) -> Tensor:
    """[N, heads, capacity, head size] -> the same with places to write behind."""
    num_answers, num_heads, capacity, head_size = filled.shape
    grown = filled.new_empty(num_answers, num_heads, next_capacity(capacity), head_size)
    grown[:, :, :capacity] = filled
    return grown
