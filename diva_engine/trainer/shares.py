"""Work shared out over the ranks: which rank does what, and how all learn what came of it.

Whatever decides anything (rollouts, scores, groups) is known to all ranks alike; pixels stay where they were encoded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from diva_engine.distributed import current_world, gather_results
from diva_engine.records import Prompt, Request, Rollout, Score


@dataclass(frozen=True)
class Answered:
    """A request's prompt, its rollouts and their scores."""

    prompt: Prompt
    rollouts: tuple[Rollout, ...]
    scores: tuple[Score, ...]


def balanced(sizes: Sequence[int], num_ranks: int) -> list[int]:
    """A rank for each piece of work: the largest first, each to the rank that has least; the same on every rank."""
    ranks = [0] * len(sizes)
    loads = [0] * num_ranks
    for piece in sorted(range(len(sizes)), key=lambda piece: -sizes[piece]):
        ranks[piece] = loads.index(min(loads))
        loads[ranks[piece]] += sizes[piece]
    return ranks


def holders_of(requests: Sequence[Request]) -> list[int]:
    """The rank that poses, answers and scores each request."""
    return balanced([1 + request.num_rollouts for request in requests], current_world().size)


def shared(work: Callable[[], list[Answered | str]], holders: Sequence[int]) -> list[Answered | str]:
    """Every rank's pieces in the order of `holders`, the rank that does each; others' prompts without their pixels."""
    world = current_world()
    if world.size == 1:
        return work()
    own: list[Answered | str] = []

    def without_pixels() -> list[Answered | str]:
        own.extend(work())
        return [found if isinstance(found, str) else _without_pixels(found) for found in own]

    pieces: list[Iterator[Answered | str]] = [iter(found) for found in gather_results(without_pixels)]
    pieces[world.rank] = iter(own)
    return [next(pieces[holder]) for holder in holders]


def _without_pixels(found: Answered) -> Answered:
    return replace(found, prompt=replace(found.prompt, pixel_values=None, images=()))
