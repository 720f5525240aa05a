"""Real processes that form the ranks of a world over gloo, as torchrun would start them."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.multiprocessing as multiprocessing

from diva_engine.algorithm.recipes import recipe_defaults
from diva_engine.distributed import current_world, leave_world, start_world
from diva_engine.records import Credit, ScoredGroup
from diva_engine.settings import load_config
from diva_engine.train import train
from diva_engine.trainer.update import Updater


def on_ranks(num_ranks: int, work: Callable[..., Any], *args: Any) -> None:
    """work(*args) in `num_ranks` processes that have met; raises what one of them raised."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    multiprocessing.spawn(_enter, (num_ranks, port, work, args), nprocs=num_ranks)


def _enter(rank: int, num_ranks: int, port: int, work: Callable[..., Any], args: Sequence[Any]) -> None:
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": num_ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()})
    torch.set_num_threads(1)
    start_world(torch.device("cpu"))
    try:
        work(*args)
    finally:
        leave_world()


def train_each_noting_tokens(runs: Sequence[Sequence[str]]) -> None:
    """The same; the token ids of every trained rollout go to `tokens.jsonl` in the run's folder, a line a step."""
    with noted_tokens():
        train_each(runs)


@contextlib.contextmanager
def noted_tokens() -> Iterator[None]:
    update = Updater.update

    def noting(self: Updater, groups: Sequence[ScoredGroup], credit: Credit) -> dict[str, float]:
        if current_world().is_first and self.faults.run_dir is not None:
            with (self.faults.run_dir / "tokens.jsonl").open("a") as file:
                print(json.dumps([[rollout.token_ids for rollout in group.rollouts] for group in groups]), file=file)
        return update(self, groups, credit)

    Updater.update = noting
    try:
        yield
    finally:
        Updater.update = update


def train_each(runs: Sequence[Sequence[str]]) -> None:
    """One training run after the other, each by its settings."""
    for words in runs:
        train(load_config(words, recipe_defaults))
