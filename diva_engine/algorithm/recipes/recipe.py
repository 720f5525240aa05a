"""What a recipe is made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from diva_engine.algorithm.losses import Loss
from diva_engine.algorithm.plans import Plan
from diva_engine.config import Config
from diva_engine.records import Credit, ScoredGroup

CreditRule = Callable[[Sequence[ScoredGroup], Config], Credit]


def never(config: Config) -> bool:
    return False


def accept(config: Config) -> None:
    """Any settings will do."""


@dataclass(frozen=True)
class Recipe:
    """An algorithm: what to ask, how rollouts are credited, what loss is minimised, and the settings it presets."""

    summary: str  # one line, for `--list`
    plan: Plan
    credit: CreditRule
    loss: Loss
    defaults: Mapping[str, Any] = field(default_factory=dict)
    authors_defaults: Mapping[str, Any] = field(default_factory=dict)  # on top: what the authors' code does otherwise
    check: Callable[[Config], None] = accept  # raises UserError where settings leave the recipe nothing to do
    needs_visual_entropy: Callable[[Config], bool] = never  # whether the credit reads ScoredGroup.visual_entropy
