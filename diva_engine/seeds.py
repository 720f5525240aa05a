"""Seeds for everything random, made of what identifies the draw: (run seed, step, question, ...).

No draw of the engine reads a global random state, so a step asks the same questions, poses the same variants and
samples the same answers on any number of ranks and after any resume.
"""

from __future__ import annotations

import hashlib
import random


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed from whole numbers and texts; equal parts give equal seeds on every machine and Python."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest(), "little") >> 1


def derive_random(*parts: int | str) -> random.Random:
    """A Python generator of its own for one draw."""
    return random.Random(derive_seed(*parts))
