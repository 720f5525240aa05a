"""Brings rollouts that come in any order, each with its ids, into the order that the ops read, and back."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diva_engine.records import UserError

Ids = Iterable[Any]  # one hashable id a rollout; the rows of a tensor or an array are ids too


@dataclass(frozen=True)
class RolloutOrder:
    """The rollouts of a prompt stand together, and so do the prompts of a question, each in order of appearance."""

    order: Tensor  # [N] int64: the rollout that stands at each place
    prompt_offsets: Tensor  # [P + 1] int64 over rollouts
    question_offsets: Tensor  # [Q + 1] int64 over prompts
    prompts: tuple[Hashable, ...]  # [P] the prompts' ids, for messages

    def gather(self, name: str, values: Any, dtype: torch.dtype) -> Tensor:
        """values [N] as the caller has them -> [N] in this order, on this device."""
        tensor = as_numbers(name, values)
        if tensor.shape != self.order.shape:
            raise UserError(f"{name} has the shape {list(tensor.shape)}, but there are {len(self.order)} rollouts")
        return tensor.to(self.order.device, dtype)[self.order]

    def gather_prompts(self, name: str, values: Any) -> Tensor:
        """values [N], equal within each prompt -> [P]: the value of each prompt. NaN equals NaN."""
        gathered = self.gather(name, values, torch.float32)
        first = gathered[self.prompt_offsets[:-1]]
        expected = first.repeat_interleave(self.prompt_offsets.diff())
        differs = (gathered != expected) & ~(gathered.isnan() & expected.isnan())
        if differs.any():
            place = int(differs.nonzero()[0])
            prompt = self.prompts[int(torch.searchsorted(self.prompt_offsets, place, right=True)) - 1]
            raise UserError(
                f"{name} must be equal within a prompt, but prompt {prompt!r} has "
                f"{float(expected[place]):g} and {float(gathered[place]):g}"
            )
        return first

    def restore(self, values: Tensor) -> Tensor:
        """values [N] in this order -> [N] in the caller's."""
        restored = torch.empty_like(values)
        restored[self.order] = values
        return restored


def as_numbers(name: str, values: Any) -> Tensor:
    try:
        return torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{name} must hold one number a rollout: {error}") from None


def order_rollouts(prompt_ids: Ids, question_ids: Ids | None, num_rollouts: int, device: torch.device) -> RolloutOrder:
    """The order of `num_rollouts` rollouts by their ids; without question ids, each prompt is a question.

    Raises:
        UserError: not one id a rollout, an id that cannot be compared, a prompt under two questions.
    """
    prompts = _hashable("prompt_ids", prompt_ids, num_rollouts)
    questions = prompts if question_ids is None else _hashable("question_ids", question_ids, num_rollouts)
    question_of: dict[Hashable, Hashable] = {}
    for prompt, question in zip(prompts, questions, strict=True):
        if question_of.setdefault(prompt, question) != question:
            raise UserError(
                f"prompt {prompt!r} stands under the questions {question_of[prompt]!r} and {question!r}; "
                "a prompt belongs to one question: make its id unique, for instance (question, variant)"
            )
    rollouts_of: dict[Hashable, dict[Hashable, list[int]]] = {}
    for rollout, (prompt, question) in enumerate(zip(prompts, questions, strict=True)):
        rollouts_of.setdefault(question, {}).setdefault(prompt, []).append(rollout)

    groups = [group for prompts_of in rollouts_of.values() for group in prompts_of.values()]
    return RolloutOrder(
        order=torch.tensor([rollout for group in groups for rollout in group], dtype=torch.int64, device=device),
        prompt_offsets=_offsets([len(group) for group in groups], device),
        question_offsets=_offsets([len(prompts_of) for prompts_of in rollouts_of.values()], device),
        prompts=tuple(prompt for prompts_of in rollouts_of.values() for prompt in prompts_of),
    )


def _offsets(sizes: Sequence[int], device: torch.device) -> Tensor:
    return torch.tensor([0, *accumulate(sizes)], dtype=torch.int64, device=device)


def _hashable(name: str, ids: Ids, num_rollouts: int) -> list[Hashable]:
    """The ids as Python values that are equal where the caller's are: tensors are compared by value, not identity."""
    from_array = isinstance(ids, Tensor | np.ndarray)
    values = ids.tolist() if isinstance(ids, Tensor | np.ndarray) else list(ids)
    if len(values) != num_rollouts:
        raise UserError(f"{name} has {len(values)} ids for {num_rollouts} rewards: give one a rollout")
    plain = [_plain(value, from_array) for value in values]
    for place, value in enumerate(plain):
        try:
            hash(value)
        except TypeError:
            kind = type(value).__name__
            raise UserError(f"{name}[{place}] is a {kind}, which has no hash; make it a tuple or a text") from None
        if value != value:  # NaN alone: each would be a group of its own
            raise UserError(f"{name}[{place}] is NaN; give every rollout an id")
    return plain


def _plain(value: Any, from_array: bool) -> Any:
    if isinstance(value, Tensor | np.ndarray | np.generic):
        value, from_array = value.tolist(), True
    if from_array and isinstance(value, list):
        return tuple(_plain(element, True) for element in value)
    return value
