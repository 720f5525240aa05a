"""The process's global random states. No draw of the engine reads them (see `seeds.py`); a library might."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from diva_engine.seeds import derive_seed


def seed_random_state(*parts: int | str) -> None:
    """Begins all of them from one seed, so that what reads them does the same in every run of that seed."""
    seed = derive_seed("global random states", *parts)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)  # the GPUs' too


def random_state() -> dict[str, Any]:
    """As plain values and tensors, which `torch.load(weights_only=True)` reads back."""
    algorithm, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": (str(algorithm), torch.from_numpy(keys.astype(np.int64)), position, has_gauss, cached),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    """The GPUs' states only where there are as many as there were."""
    algorithm, keys, *rest = state["numpy"]
    random.setstate(state["python"])
    np.random.set_state((algorithm, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
