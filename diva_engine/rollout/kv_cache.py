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
    """N answers to B prompts of L places; per layer [B, heads, L, head size] and [N, 2 * heads, capacity, head size].

    `heads` counts key-value heads; of an answer's, the keys come first, then the values. The answers are sorted by
    prompt, and all have the same number of places filled.
    """

    def __init__(self, prompts: Prefill, prompt_of_answer: Tensor) -> None:
        """prompt_of_answer [N] int64, ascending: index of each answer's prompt."""
        self._prompt_keys, self._prompt_values = prompts.keys, prompts.values
        self._prompt_bias = _padding_bias(prompts.mask, prompts.keys[0].dtype)
        self._num_heads, _, head_size = prompts.keys[0].shape[1:]
        shape = (len(prompt_of_answer), 2 * self._num_heads, _GROWTH, head_size)
        self._own = [keys.new_empty(shape) for keys in prompts.keys]
        self._length = 0
        self._arrange(prompt_of_answer)

    def open_place(self) -> None:
        """Make room for the next token of every answer."""
        if self._length == self._own[0].shape[2]:
            self._own = [_grown(own) for own in self._own]
        self._length += 1

    def attend(self, layer: int, query: Tensor, key_and_value: Tensor) -> Tensor:
        """Put key and value [N, 2 * heads, head size] at the open place, and let each answer see its prompt and itself.

        query [N, queries, heads, head size] -> the same shape; `queries` query heads share each key head.
        """
        self._own[layer][:, :, self._length - 1] = key_and_value
        own_keys, own_values = self._own[layer][:, :, : self._length].split(self._num_heads, dim=1)
        of_own, own_log_sum = _attend(query, own_keys, own_values, None)
        of_prompt, prompt_log_sum = _attend(
            self._to_slots(query), self._prompt_keys[layer], self._prompt_values[layer], self._prompt_bias
        )
        of_prompt, prompt_log_sum = self._to_answers(of_prompt), self._to_answers(prompt_log_sum)
        share_of_prompt = (prompt_log_sum - own_log_sum).sigmoid()
        return of_own.lerp(of_prompt, share_of_prompt.to(of_own.dtype)[..., None])

    def keep(self, answers: Tensor) -> None:
        """Drop all but `answers` (indices, ascending), and the prompts that are left without an answer."""
        self._own = [own[answers] for own in self._own]
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
        num_slots = int(sizes.max())
        first_of_prompt = sizes.cumsum(0) - sizes
        numbers = torch.arange(num_answers, device=prompt_of_answer.device)
        self._prompt_of_answer = prompt_of_answer
        self._slot_of_answer = prompt_of_answer * num_slots + numbers - first_of_prompt[prompt_of_answer]
        # Slots left over repeat answer 0; nothing reads what they compute.
        self._answer_of_slot = numbers.new_zeros(num_prompts * num_slots)
        self._answer_of_slot[self._slot_of_answer] = numbers
        self._is_even = num_prompts * num_slots == num_answers  # slot i is answer i

    def _to_slots(self, of_answers: Tensor) -> Tensor:
        """[N, queries, ...] -> [B, slots * queries, ...]"""
        slots = of_answers if self._is_even else of_answers.index_select(0, self._answer_of_slot)
        return slots.reshape(len(self._prompt_keys[0]), -1, *of_answers.shape[2:])

    def _to_answers(self, of_slots: Tensor) -> Tensor:
        """[B, slots * queries, ...] -> [N, queries, ...]"""
        slots = of_slots.reshape(len(self._answer_of_slot), -1, *of_slots.shape[2:])
        return slots if self._is_even else slots.index_select(0, self._slot_of_answer)


def _attend(query: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """query [B, queries, heads, head size], keys and values [B, heads, places, head size], bias [B, 1, 1, places]
    added to the scores -> what is attended, of the query's shape, and the logarithm of the sum of the scores'
    exponentials [B, queries, heads] float32, with which two parts of one attention are weighed."""
    query = query.transpose(1, 2)
    if query.device.type == "cpu":
        # The kernel behind scaled_dot_product_attention, which keeps that logarithm to itself.
        attended, log_sum = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, keys, values, attn_mask=bias
        )
    else:
        attended, log_sum = attend_reference(query, keys, values, bias)
    return attended.transpose(1, 2), log_sum.transpose(1, 2)


def attend_reference(query: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """The definition. query [B, heads, queries, head size] -> attended, log_sum [B, heads, queries] float32."""
    scores = (query * query.shape[-1] ** -0.5 @ keys.transpose(2, 3)).float()
    if bias is not None:
        scores += bias
    log_sum = scores.logsumexp(dim=-1)
    weights = (scores - log_sum[..., None]).exp_().to(values.dtype)
    return weights @ values, log_sum


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
