"""Which rank trains which tree: the one that holds its pixels, unless that one has too much to do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch.distributed as dist

from diva_engine.distributed import current_world
from diva_engine.policy.packing import row_length
from diva_engine.records import AnswerTree, Prompt

# A tree stays with its holder until that one has so many times an even share of the tokens: pixels are heavy to send.
_SLACK = 1.1


def own_trees(trees: Sequence[AnswerTree]) -> dict[int, AnswerTree]:
    """The trees that this rank trains, by their place in `trees`, with their pixels. A collective call.

    Every rank gives the same trees, apart from the pixels, which only a prompt's holder has.
    """
    world = current_world()
    if world.size == 1:
        return dict(enumerate(trees))
    ranks = place([row_length(tree) for tree in trees], [tree.prompt.holder for tree in trees], world.size)
    brought = _bring(trees, ranks, world.rank)
    own = {i: tree for i, tree in enumerate(trees) if ranks[i] == world.rank}
    return {i: replace(tree, prompt=brought.get(id(tree.prompt), tree.prompt)) for i, tree in own.items()}


def place(lengths: Sequence[int], holders: Sequence[int], num_ranks: int) -> list[int]:
    """A rank for each tree of `lengths` tokens; the same on every rank."""
    room = _SLACK * sum(lengths) / num_ranks
    loads = [0] * num_ranks
    ranks = list(holders)
    moved = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if loads[holders[i]] and loads[holders[i]] + lengths[i] > room:
            moved.append(i)
        else:
            loads[holders[i]] += lengths[i]
    for i in moved:
        ranks[i] = loads.index(min(loads))
        loads[ranks[i]] += lengths[i]
    return ranks


def _bring(trees: Sequence[AnswerTree], ranks: Sequence[int], rank: int) -> dict[int, Prompt]:
    """Sends pixels from holders to trainers, all in one order on every rank; what came here, by the id of the prompt
    that lacked them."""
    brought: dict[int, Prompt] = {}
    done: set[tuple[int, int]] = set()
    for tree, trainer in zip(trees, ranks, strict=True):
        prompt = tree.prompt
        move = (id(prompt), trainer)  # the parts of a split tree share their prompt
        if trainer == prompt.holder or prompt.image_grid_thw is None or move in done:
            continue
        done.add(move)
        if rank == prompt.holder:
            dist.send_object_list([prompt.pixel_values], trainer)
        elif rank == trainer:
            pixels = [None]
            dist.recv_object_list(pixels, prompt.holder)
            brought[id(prompt)] = replace(prompt, pixel_values=pixels[0])
    return brought
