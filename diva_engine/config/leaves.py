"""The settings one by one, with their dotted names, as the checks need them."""

from __future__ import annotations

import dataclasses
import math
import typing
from dataclasses import dataclass
from functools import cache
from typing import Any


@dataclass(frozen=True)
class Leaf:
    """One setting as the checks need it."""

    kind: Any  # its annotated type
    meaning: str
    low: float | None
    high: float | None

    @property
    def span(self) -> str:
        bounds = (("at least", self.low), ("at most", self.high))
        return " and ".join(f"{word} {bound:g}" for word, bound in bounds if bound is not None) or "finite"

    @property
    def takes_null(self) -> bool:
        """Whether null is a value: the empty text, or a choice "none"."""
        return self.kind is str or "none" in typing.get_args(self.kind)

    @property
    def takes_mapping(self) -> bool:
        return typing.get_origin(self.kind) is dict

    def contains(self, value: float) -> bool:
        above = self.low is None or value >= self.low
        below = self.high is None or value <= self.high
        return math.isfinite(value) and above and below


@cache
def find_leaves(section: type, prefix: str = "") -> dict[str, Leaf]:
    """Every setting below `section` by its dotted name. One dictionary for all callers: not to be changed."""
    kinds = typing.get_type_hints(section)
    leaves: dict[str, Leaf] = {}
    for item in dataclasses.fields(section):
        name, kind = prefix + item.name, kinds[item.name]
        if dataclasses.is_dataclass(kind):
            leaves.update(find_leaves(typing.cast(type, kind), f"{name}."))
        else:
            leaves[name] = Leaf(kind, item.metadata["meaning"], item.metadata["low"], item.metadata["high"])
    return leaves
