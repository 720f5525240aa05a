"""What stands in the user's file, as messages show it: one line, never longer than a few hundred letters."""

from __future__ import annotations

SHOWN = 200  # letters


def brief(value: object) -> str:
    """The text on one line, its end cut off where it is long."""
    text = " ".join(str(value)[: 2 * SHOWN].split())
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."


def reason_of(error: BaseException) -> str:
    """The first line of what an error says, or its name."""
    lines = str(error).splitlines()
    return brief(lines[0]) if lines else type(error).__name__
