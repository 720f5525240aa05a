"""Out of memory: the work is done once more in halves."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import TypeVar

import torch

from diva_engine.distributed import current_world
from diva_engine.records import UserError
from diva_engine.trainer.faults import FaultLog, StepFailed

T = TypeVar("T")
SETTING = "worker.actor.micro_batch_tokens"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on the GPU or on the CPU, whose allocator raises a plain RuntimeError."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def with_half_on_lack(work: Callable[[int], T], max_tokens: int, faults: FaultLog, what: str) -> T:
    """`work(max_tokens)`; where it runs out of memory, once more with half as many tokens.

    `work` starts from nothing each time: what the first attempt has half done must not count. Raises StepFailed where
    half is too much too.
    """
    try:
        return work(max_tokens)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        reason = str(error).strip().splitlines()[0] if str(error) else type(error).__name__
    world = current_world()
    if world.size > 1:  # the other ranks wait inside a collective call that this one can no longer join
        raise UserError(
            f"{what} ran out of memory on rank {world.rank} at {SETTING}={max_tokens}; lower {SETTING} ({reason})"
        )
    # Outside of the handler: the traceback, which holds the tensors of the failed attempt, is gone.
    free_memory()
    half = max(1, max_tokens // 2)
    faults.record(
        "actor/memory_retries",
        f"{what} ran out of memory at {SETTING}={max_tokens} and is done again at {half}; "
        f"set {SETTING}={half} to spare the attempt",
        detail=reason,
    )
    try:
        return work(half)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise StepFailed(
            f"{what} ran out of memory at {SETTING}={max_tokens} and again at {half}; "
            f"lower {SETTING} further, or data.max_response_length ({reason})"
        ) from None


def free_memory() -> None:
    """Hands what nothing refers to any more back to the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
