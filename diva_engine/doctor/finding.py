"""What the doctor says of one thing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Verdict = Literal["ok", "warn", "broken"]


@dataclass(frozen=True)
class Finding:
    """`value` is what was found; `mend` what to do about it, empty where all is well."""

    name: str
    verdict: Verdict
    value: str
    mend: str = ""


def guarded(name: str, check: Callable[[], Finding | list[Finding]]) -> list[Finding]:
    """What the check found; where it breaks itself, that."""
    try:
        found = check()
    except Exception as error:
        return [Finding(name, "broken", f"the check failed: {type(error).__name__}: {error}", "please report this")]
    return found if isinstance(found, list) else [found]
