"""One setting: a dataclass field with its meaning and range."""

from __future__ import annotations

from dataclasses import field
from typing import Any


def setting(default: Any, meaning: str, *, low: float | None = None, high: float | None = None) -> Any:
    """A field with its meaning and, for numbers, its closed range."""
    metadata = {"meaning": meaning, "low": low, "high": high}
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)
