"""Moves the difficulty of the step's questions, in place in a table that may live on any device."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from diva_engine.ops import library

Rule = Literal["continuous", "steps"]
RULES = get_args(Rule)  # in the order in which csrc/update_difficulty/update_difficulty.h numbers them


def update_difficulty(
    table: Tensor,  # [M] float32, changed in place; float64 on the CPU too
    index: Tensor,  # [Q] int64, each question at most once
    accuracy: Tensor,  # [Q] in [0, 1], same type as the table
    *,
    eta: float = 4.0,
    low: float = 1.0,
    high: float = 9.0,
    rule: Rule = "continuous",
) -> Tensor:  # [Q] the new values
    """Sets `table[index]` to its new difficulty, clipped to [low, high], and returns it.

    rule "continuous": D + eta * (0.5 - accuracy). rule "steps" (the authors' code): D - 2 above an accuracy of 0.8, - 1
    above 0.6, + 1 below 0.4, + 2 below 0.2.

    An index that repeats or does not exist, or an accuracy outside [0, 1], is an error with its value. On the CPU
    nothing is changed then; on CUDA the other entries are. CUDA waits for the device to tell, except while a graph is
    captured: then such an entry changes nothing and its new value is NaN. No gradient.
    """
    library.refuse_gradient("update_difficulty", table=table, accuracy=accuracy)
    if rule not in RULES:
        raise ValueError(f"update_difficulty: rule must be one of {', '.join(RULES)}, not {rule!r}")
    op = torch.ops.diva_engine.update_difficulty.default
    updated: Tensor = op(table, index, accuracy, eta, low, high, RULES.index(rule))
    return updated


def update_difficulty_reference(
    table: Tensor,
    index: Tensor,
    accuracy: Tensor,
    *,
    eta: float = 4.0,
    low: float = 1.0,
    high: float = 9.0,
    rule: Rule = "continuous",
) -> Tensor:
    """The definition, in plain torch."""
    step = eta * (0.5 - accuracy)
    if rule == "steps":
        harder = 1.0 * (accuracy < 0.4) + 1.0 * (accuracy < 0.2)
        easier = 1.0 * (accuracy > 0.6) + 1.0 * (accuracy > 0.8)
        step = harder - easier
    table[index] = (table[index] + step).clamp(low, high)
    return table[index]


@torch.library.register_fake("diva_engine::update_difficulty")
def _fake(table: Tensor, index: Tensor, accuracy: Tensor, *_: object) -> Tensor:
    return accuracy.new_empty(accuracy.shape[0])
