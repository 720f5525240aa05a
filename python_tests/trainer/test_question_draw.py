"""Questions that were solved are passed over for a while."""

from itertools import chain

import pytest

from diva_engine.algorithm.difficulty import DifficultyLedger
from diva_engine.config import DifficultyConfig
from diva_engine.data.sampler import QuestionSampler, question_order
from diva_engine.records import Problem
from diva_engine.trainer.question_draw import QuestionDraw
from python_tests.scored import make_group

SEED = 3


class Questions(list[Problem]):
    @property
    def ids(self):
        return [problem.id for problem in self]


def make_draw(num_questions, batch_size, rest_solved):
    questions = Questions(Problem(id=str(i), text="?", answer="1") for i in range(num_questions))
    ledger = DifficultyLedger(DifficultyConfig(rest_solved=rest_solved))
    return QuestionDraw(questions, QuestionSampler(num_questions, batch_size, seed=SEED), ledger)


def numbers(problems):
    return [int(problem.id) for problem in problems]


def answer(draw, problems, solved):
    """A step in which the questions numbered `solved` were all right, the others half."""
    groups = [make_group([1.0, float(int(problem.id) in solved)], problem.id) for problem in problems]
    draw.ledger.observe(groups, step=0)


def visits_of(question, rest_solved, epochs, fails_at=()):
    """In which epochs a question is posed that is solved on every visit but those numbered `fails_at`; of four, one a
    step, the others never solved."""
    draw, visits = make_draw(4, 1, rest_solved), []
    for _ in range(6 * epochs):
        problems = draw.next_step()
        is_right = len(visits) not in fails_at
        if numbers(problems) == [question]:
            visits.append(draw.sampler.epoch)
        answer(draw, problems, {question} if is_right else set())
    return [epoch for epoch in visits if epoch < epochs]


@pytest.mark.parametrize(
    ("rest_solved", "fails_at", "expected"),
    [
        (0, (), list(range(12))),
        (1, (), [0, 2, 4, 6, 8, 10]),
        (3, (), [0, 2, 5, 9]),  # rests for 1, 2, 3, 3 encounters, one an epoch
        (64, (), [0, 2, 5, 10]),  # 1, 2, 4, 8
        (64, (2,), [0, 2, 5, 6, 8, 11]),  # the third visit fails: posed again in the next epoch, then 1, 2, ...
    ],
)
def test_a_solved_question_rests_twice_as_long_after_each_visit(rest_solved, fails_at, expected):
    assert visits_of(2, rest_solved, 12, fails_at) == expected


def test_without_rests_the_questions_are_the_samplers():
    draw, sampler = make_draw(10, 3, 0), QuestionSampler(10, 3, seed=SEED)
    for _ in range(7):
        problems = draw.next_step()
        assert numbers(problems) == sampler.next_batch()
        answer(draw, problems, set(range(10)))


def test_others_stand_in_for_resting_questions():
    draw = make_draw(6, 3, 9)
    first, order = draw.next_step(), question_order(6, SEED, 0).tolist()
    assert numbers(first) == order[:3]
    answer(draw, first, set(order[:2]))
    # The next step takes the epoch's other half; the one after passes over the two that were solved.
    second, third = draw.next_step(), draw.next_step()
    assert numbers(second) == order[3:]
    assert numbers(third) == [i for i in question_order(6, SEED, 1).tolist() if i not in order[:2]][:3]


def test_further_questions_of_a_step_are_awake_ones_first():
    draw = make_draw(6, 2, 9)
    order = question_order(6, SEED, 0).tolist()
    answer(draw, [draw.questions[i] for i in order[2:4]], set(order[2:4]))
    draw.next_step()
    assert numbers(draw.more(2)) == order[4:]
    draw = make_draw(6, 2, 9)
    answer(draw, [draw.questions[i] for i in order[2:5]], set(order[2:5]))
    draw.next_step()
    assert numbers(draw.more(3)) == [order[5], *order[2:4]], "two are woken, for no other is left"
    assert int(draw.ledger.rest.sum()) == 3 - 1, "only the one passed over has a turn less to rest"


def test_where_all_rest_a_step_is_still_full():
    draw = make_draw(5, 2, 64)
    answer(draw, draw.questions, set(range(5)))
    posed = [numbers(draw.next_step()) for _ in range(4)]
    assert [len(step) for step in posed] == [2] * 4
    assert set(chain(*posed)) <= set(range(5))


def test_peeking_moves_nothing_and_sees_the_next_step():
    draw = make_draw(8, 3, 4)
    for _ in range(9):  # past the end of an epoch
        before, state = draw.sampler.state_dict(), draw.ledger.state_dict()
        peeked = numbers(draw.peek())
        assert (draw.sampler.state_dict(), draw.ledger.rest.tolist()) == (before, state["rest"].tolist())
        problems = draw.next_step()
        assert numbers(problems) == peeked
        answer(draw, problems, {0, 1, 2, 3})
