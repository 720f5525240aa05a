"""The ranks of a run. One process without `torchrun` is rank 0 of 1, and nothing here then communicates."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist

from diva_engine.records import UserError

T = TypeVar("T")
_PATIENCE_S = 30.0


@dataclass(frozen=True)
class World:
    """Which rank this process is, of how many."""

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this rank writes files and speaks to the user."""
        return self.rank == 0


def current_world() -> World:
    if not (dist.is_available() and dist.is_initialized()):
        return World()
    return World(dist.get_rank(), dist.get_world_size())


def is_launched() -> bool:
    """Whether `torchrun` started this process."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def local_rank() -> int:
    """Number of this process on its machine, counted from 0."""
    return int(os.environ.get("LOCAL_RANK", 0))


def start_world(device: torch.device, *, is_alone: bool = False) -> World:
    """Joins the ranks that `torchrun` started; `is_alone` makes a world of one where there is no `torchrun`.

    Objects and CPU tensors go over gloo, tensors on GPUs over NCCL.
    """
    if dist.is_initialized() or not (is_launched() or is_alone):
        return current_world()
    backend = "gloo"
    if device.type == "cuda":
        torch.cuda.set_device(device)
        backend = "cpu:gloo,cuda:nccl"
    if is_launched():
        dist.init_process_group(backend)
    else:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    return current_world()


def leave_world() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def gather_from_all(value: T) -> list[T]:
    """Every rank's value, in the order of the ranks, on every rank. A collective call."""
    world = current_world()
    if world.size == 1:
        return [value]
    values: list[T] = [value] * world.size
    dist.all_gather_object(values, value)
    return values


def gather_results(work: Callable[[], T]) -> list[T]:
    """Every rank's result of its own work. Where one rank raises UserError, all raise it: none waits for the other."""
    if current_world().size == 1:
        return [work()]
    result: tuple[T | None, UserError | None]
    try:
        result = work(), None
    except UserError as error:
        result = None, error
    found = gather_from_all(result)
    for _, error in found:
        if error is not None:
            raise error
    return [value for value, _ in found]  # type: ignore[misc]


def first_result(work: Callable[[], T]) -> T:
    """What the work of the first rank returned, on every rank; the others do none."""
    return gather_results(lambda: work() if current_world().is_first else None)[0]  # type: ignore[return-value]


def max_over_all(value: int) -> int:
    """The largest of the ranks' values. A collective call."""
    return max(gather_from_all(value))


def sum_over_all(values: Mapping[str, float]) -> dict[str, float]:
    """The ranks' values by name, added up. A collective call."""
    found = gather_from_all(dict(values))
    return {name: sum(own.get(name, 0) for own in found) for name in found[0]}


def say(text: str) -> None:
    """Prints on the first rank only."""
    if current_world().is_first and os.environ.get("RANK", "0") == "0":
        print(text)


def say_once(line: str) -> None:
    """Prints on stderr, before the process ends, what one rank, or several alike, have to say: the first to come."""
    if dist.is_initialized() and current_world().size > 1:
        if dist.distributed_c10d._get_default_store().add(f"said: {line}", 1) > 1:
            return
    elif os.environ.get("RANK", "0") != "0":
        # The ranks have not met. The first one has read the same settings and will say the same; torchrun then ends
        # this process. What concerns this machine alone is said after all.
        time.sleep(_PATIENCE_S)
    print(line, file=sys.stderr)
