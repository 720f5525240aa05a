"""Does a response have the demanded form?"""

from __future__ import annotations

import re

from diva_engine.records import UserError

DEFAULT_FORMAT_PATTERN = r"<think>.*</think>.*\\boxed\{.*\}.*"

_TAG_CHARACTER = re.compile(r"([<>/])")
_GAP = re.compile(r"\.\*\??")
_ESCAPED = re.compile(r"\\([^A-Za-z0-9])")
_SPECIAL = re.compile(r"[\\.^$*+?{}\[\]|()]")


def tighten_tags(response: str) -> str:
    """Spaces around `<`, `>` and `/` removed: `< think >` counts as `<think>`."""
    return "".join(part.strip() for part in _TAG_CHARACTER.split(response))


class FormatPattern:
    """A regular expression that must match a whole response; `.` matches line ends too.

    A pattern of fixed texts with `.*` between them, as the default is, is matched in linear time. Any other pattern can
    take very long over an unlucky response: `needs_worker` says that it must be matched where it can be stopped.
    """

    def __init__(self, pattern: str = DEFAULT_FORMAT_PATTERN) -> None:
        try:
            re.compile(pattern, re.DOTALL)
        except re.error as error:
            raise UserError(f"format_pattern {pattern!r} is not a regular expression: {error}") from None
        self.pattern = pattern
        self._pieces = _fixed_pieces(pattern)

    @property
    def needs_worker(self) -> bool:
        return self._pieces is None

    def matches(self, response: str) -> bool:
        """Full match of a tightened response; only where `needs_worker` is false."""
        assert self._pieces is not None
        if len(self._pieces) == 1:
            return response == self._pieces[0]
        first, *middle, last = self._pieces
        if not response.startswith(first):
            return False
        position = len(first)
        for piece in middle:
            found = response.find(piece, position)
            if found < 0:
                return False
            position = found + len(piece)
        return len(response) - len(last) >= position and response.endswith(last)


def _fixed_pieces(pattern: str) -> list[str] | None:
    """The fixed texts of a pattern between its `.*`, or None where it holds anything else."""
    pieces = []
    for piece in _GAP.split(pattern):
        unescaped = _ESCAPED.sub("", piece)
        if _SPECIAL.search(unescaped):
            return None
        pieces.append(_ESCAPED.sub(r"\1", piece))
    return pieces
