"""Hints grow by half the way after failure, shrink by a third after success, and rest after repeated failure."""

import pytest

from diva_engine.algorithm.hint_control import HintState, after_hint, after_rest, first_hint, is_resting
from diva_engine.config import RescueConfig

SETTINGS = RescueConfig()
#        steps shown, longest, accuracy -> steps shown next, failures
CASES = {
    "no success, longest": (5, 5, 0.0, 5, 1),
    "no success, half the way up": (1, 9, 0.0, 5, 0),
    "no success, next to the longest": (8, 9, 0.0, 9, 0),
    "some success stays": (4, 6, 0.5, 4, 0),
    "just at the bound stays": (4, 6, 0.7, 4, 0),
    "much success, a third less": (9, 9, 0.75, 6, 0),
    "much success, one less": (2, 6, 1.0, 1, 0),
    "never below one": (1, 6, 1.0, 1, 0),
    "the record has become shorter": (7, 4, 0.5, 4, 0),
}


@pytest.mark.parametrize(("shown", "most", "accuracy", "after", "failures"), CASES.values(), ids=CASES)
def test_after_a_hint(shown, most, accuracy, after, failures):
    assert after_hint(HintState(shown), most, accuracy, SETTINGS) == HintState(after, failures)


def test_the_first_hint_is_the_longest():
    assert first_hint(HintState(), 6) == HintState(6)
    assert first_hint(HintState(2, 1), 6) == HintState(2, 1)


def test_after_three_failures_of_the_longest_hint_a_question_rests_then_is_tried_again():
    state = HintState(5)
    for _ in range(3):
        assert not is_resting(state, SETTINGS)
        state = after_hint(state, 5, 0.0, SETTINGS)
    visits = 0
    while is_resting(state, SETTINGS):
        state = after_rest(state, SETTINGS)
        visits += 1
    assert visits == SETTINGS.rest
    assert state == HintState(5, 0)


def test_a_success_forgets_the_failures():
    assert after_hint(HintState(5, 2), 5, 0.25, SETTINGS).failures == 0
