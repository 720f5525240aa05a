"""The lengths of an answer tree in a packed row: all that attention over it needs to know."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TreeShape:
    """One tree of a packed row: its trunk, then its branches end to end. All lengths in tokens."""

    trunk_length: int  # at least 1
    branch_lengths: tuple[int, ...]  # 0 for an answer of one token, which predicts nothing

    @property
    def length(self) -> int:
        """Tokens of the tree in the row."""
        return self.trunk_length + sum(self.branch_lengths)
