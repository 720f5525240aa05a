"""How much a fuzz test tries, a fixed number or what `--fuzz-seconds` allows; and the count of what was tried."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Iterator

TRIED: Counter[str] = Counter()  # inputs by kind, over the whole session


class Budget:
    """The share of one fuzz test. Seeds go on where the fixed number ends, so that more time finds new inputs."""

    def __init__(self, seconds: float | None, first_seed: int = 0) -> None:
        self._seconds = seconds
        self._first = 1_000_000 * first_seed

    def draws(self, kind: str, count: int) -> Iterator[random.Random]:
        """`count` generators with seeds that count up; with a bound in seconds, as many more as fit into it."""
        end = time.monotonic() + (self._seconds or 0)
        seed = 0
        while seed < count or time.monotonic() < end:
            TRIED[kind] += 1
            yield random.Random(f"{kind} {self._first + seed}")
            seed += 1
