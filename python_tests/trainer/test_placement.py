"""Work shared out over ranks: even, the same everywhere, and with as few moves as that needs."""

import pytest

from diva_engine.trainer.placement import place
from diva_engine.trainer.shares import balanced

SHARES = {
    "alike": ([4, 4, 4, 4], 2, [0, 1, 0, 1]),
    "largest first": ([1, 9, 1, 8], 2, [1, 0, 0, 1]),
    "fewer pieces than ranks": ([5], 3, [0]),
    "nothing": ([], 2, []),
    "one rank": ([3, 1], 1, [0, 0]),
}


@pytest.mark.parametrize(("sizes", "num_ranks", "ranks"), SHARES.values(), ids=SHARES)
def test_requests_go_to_the_rank_that_has_least(sizes, num_ranks, ranks):
    assert balanced(sizes, num_ranks) == ranks


PLACES = {
    "even where they lie": ([10, 10, 10, 10], [0, 0, 1, 1], [0, 0, 1, 1]),
    "a tenth too much stays": ([11, 10, 9, 10], [0, 0, 1, 1], [0, 0, 1, 1]),
    "all on one": ([10, 10, 10, 10], [1, 1, 1, 1], [1, 1, 0, 0]),
    "the small ones move": ([30, 10, 10, 10], [0, 0, 0, 0], [0, 1, 1, 1]),
    "one that is more than a share stays": ([90, 5, 5], [1, 0, 0], [1, 0, 0]),
    "nothing": ([], [], []),
}


@pytest.mark.parametrize(("lengths", "holders", "ranks"), PLACES.values(), ids=PLACES)
def test_trees_stay_with_their_pixels_unless_a_rank_has_too_much(lengths, holders, ranks):
    assert place(lengths, holders, 2) == ranks
