"""The ranks' common words: what is gathered, and that nobody waits for one that has failed."""

import torch
import torch.distributed as dist

from diva_engine.distributed import (
    current_world,
    first_result,
    gather_from_all,
    gather_results,
    max_over_all,
    sum_over_all,
)
from diva_engine.records import UserError
from diva_engine.trainer.faults import StepFailed
from python_tests.ranks import on_ranks


def fails_on(rank: int, error: Exception) -> int:
    if current_world().rank == rank:
        raise error
    return 1


def raised_by(work):
    try:
        work()
    except UserError as error:
        return type(error), str(error)
    return None


def check_words():
    rank = current_world().rank
    assert gather_from_all(10 * rank) == [0, 10]
    assert gather_results(lambda: rank + 1) == [1, 2]
    assert first_result(lambda: f"of rank {rank}") == "of rank 0"
    assert max_over_all(5 - rank) == 5
    assert sum_over_all({"a": 1.5, "b": rank}) == {"a": 3.0, "b": 1}
    for failing in (0, 1):
        error = StepFailed("out of luck")
        assert raised_by(lambda r=failing, e=error: gather_results(lambda: fails_on(r, e))) == (
            StepFailed,
            "out of luck",
        )
    assert raised_by(lambda: first_result(lambda: fails_on(0, UserError("no folder")))) == (UserError, "no folder")
    dist.all_reduce(torch.ones(1))  # after all of it the ranks still meet


def test_two_ranks_share_words_and_failures():
    on_ranks(2, check_words)


def test_one_process_is_a_world_of_its_own():
    assert (current_world().rank, current_world().size) == (0, 1)
    assert gather_from_all("x") == ["x"]
    assert raised_by(lambda: gather_results(lambda: fails_on(0, StepFailed("no")))) == (StepFailed, "no")
