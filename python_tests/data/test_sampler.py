"""The order of questions depends on (seed, epoch) alone and goes on exactly after a resume."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest

from diva_engine.data.sampler import QuestionSampler, question_order
from diva_engine.records import UserError


def draw(sampler: QuestionSampler, num_steps: int) -> list[list[int]]:
    return [sampler.next_batch() for _ in range(num_steps)]


def test_the_order_is_fixed_for_all_time():
    assert question_order(8, seed=1, epoch=0).tolist() == [5, 0, 6, 4, 7, 3, 2, 1]


@pytest.mark.parametrize("num", [1, 2, 1000])
def test_an_order_holds_every_question_once(num):
    assert sorted(question_order(num, seed=3, epoch=5).tolist()) == list(range(num))


def test_seeds_and_epochs_give_different_orders():
    orders = {tuple(question_order(50, seed, epoch).tolist()) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9


def test_every_place_is_equally_likely():
    firsts = [question_order(4, seed=0, epoch=epoch)[0] for epoch in range(4000)]
    assert np.abs(np.bincount(firsts) / 4000 - 0.25).max() < 0.03  # 4 standard deviations


@pytest.mark.parametrize(("num", "batch", "per_epoch"), [(10, 5, 2), (10, 3, 3), (4, 4, 1)])
def test_an_epoch_repeats_no_question(num, batch, per_epoch):
    sampler = QuestionSampler(num, batch, seed=1)
    assert sampler.steps_per_epoch == per_epoch
    for _ in range(3):
        epoch = [index for step in draw(sampler, per_epoch) for index in step]
        assert len(set(epoch)) == len(epoch) == per_epoch * batch


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("done", range(8))
def test_a_resumed_sampler_goes_on_exactly(done, shuffle):
    unbroken = draw(QuestionSampler(10, 3, seed=7, shuffle=shuffle), 12)
    first = QuestionSampler(10, 3, seed=7, shuffle=shuffle)
    draw(first, done)
    second = QuestionSampler(10, 3, seed=7, shuffle=shuffle)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert draw(second, 12 - done) == unbroken[done:]


def test_without_shuffle_the_order_is_the_files():
    assert draw(QuestionSampler(5, 2, seed=1, shuffle=False), 3) == [[0, 1], [2, 3], [0, 1]]


CHANGES = {
    "other data": ({"num_questions": 11}, "num_questions=10, this run has 11; restore data.train_files"),
    "other seed": ({"seed": 2}, "seed=1, this run has 2; restore data.seed"),
    "other shuffle": ({"shuffle": False}, "shuffle=True, this run has False; restore data.shuffle"),
}


@pytest.mark.parametrize("case", CHANGES)
def test_a_checkpoint_of_other_data_is_refused(case):
    change, message = CHANGES[case]
    settings = {"num_questions": 10, "batch_size": 2, "seed": 1, "shuffle": True}
    saved = QuestionSampler(**settings).state_dict()
    with pytest.raises(UserError, match=message):
        QuestionSampler(**(settings | change)).load_state_dict(saved)


def test_too_few_questions_for_a_step_are_refused():
    with pytest.raises(UserError, match=r"poses 5 questions, the data have 4; set data.rollout_batch_size=4 or less"):
        QuestionSampler(4, 5, seed=1)


def test_a_step_that_draws_more_meets_no_question_twice_and_goes_on_in_order():
    sampler, plain = QuestionSampler(10, 3, seed=1), QuestionSampler(10, 1, seed=1)
    order = [index for step in draw(plain, 10) for index in step]
    assert sampler.next_batch() == order[:3]
    assert sampler.draw_more(2) == order[3:5]
    assert sampler.draw_more(3) == order[5:8]
    more = sampler.draw_more(5)
    assert more == order[8:], "two are left that the step has not met"
    assert sampler.draw_more(1) == []
    assert len(sampler.next_batch()) == 3


def test_drawing_more_runs_on_into_the_next_epoch():
    sampler = QuestionSampler(6, 4, seed=2)
    met = sampler.next_batch()
    met += sampler.draw_more(1)
    assert sampler.epoch == 0
    met += sampler.draw_more(1)
    assert sorted(met) == list(range(6))
    fresh = sampler.next_batch()
    assert sampler.epoch == 1
    assert fresh == question_order(6, 2, 1)[:4].tolist()


def test_a_resumed_sampler_draws_the_same_further_questions():
    whole, first = QuestionSampler(9, 2, seed=4), QuestionSampler(9, 2, seed=4)
    for sampler in (whole, first):
        sampler.next_batch()
        sampler.draw_more(3)
    second = QuestionSampler(9, 2, seed=4)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for _ in range(5):
        assert second.next_batch() == whole.next_batch()
        assert second.draw_more(2) == whole.draw_more(2)


def test_drawing_from_a_copy_moves_nothing():
    sampler, untouched = (QuestionSampler(10, 4, seed=1) for _ in range(2))
    for _ in range(5):  # past the end of an epoch
        peeked = copy.copy(sampler).next_batch()
        assert peeked == copy.copy(sampler).next_batch() == sampler.next_batch() == untouched.next_batch()
        assert sampler.draw_more(2) == untouched.draw_more(2)
        assert sampler.state_dict() == untouched.state_dict()
