"""Strings that end an answer, found token by token as it is decoded."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any


class StopStrings:
    """Finds the token at which an answer first contains one of `strings`, none of them empty.

    Special tokens have no text, as in the answer's own. A token is asked about once, when it is the last one.
    """

    def __init__(self, strings: Sequence[str], tokenizer: Any) -> None:
        self._strings = tuple(strings)
        self._tokenizer = tokenizer
        self._special_ids = frozenset(tokenizer.all_special_ids)
        # A token has at least a byte of text, so that no string reaches over more tokens than it has bytes; one more,
        # for some tokenizers drop a leading space where they begin.
        self._num_tokens = max((len(string.encode()) for string in strings), default=0) + 1

    def end_with(self, token_ids: Sequence[int]) -> bool:
        """Whether the last of an answer's tokens completes a string."""
        if not self._strings or token_ids[-1] in self._special_ids:
            return False
        tail = list(islice((t for t in reversed(token_ids) if t not in self._special_ids), self._num_tokens))
        text = self._tokenizer.decode(tail[::-1])
        return any(string in text for string in self._strings)
