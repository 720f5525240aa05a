"""Hints grow by half the way after failure, shrink by a third after success, and rest after repeated failure."""

from dataclasses import replace

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


def hinted_visits(settings, count):
    """Which of `count` visits of a question get a hint whose every hint fails."""
    state, hinted = HintState(5), []
    for visit in range(count):
        if is_resting(state, settings):
            state = after_rest(state, settings)
        else:
            state = after_hint(state, 5, 0.0, settings)
            hinted.append(visit)
    return hinted


@pytest.mark.parametrize(
    ("patience", "rest", "expected"), [(3, 4, [0, 1, 2, 7, 12, 17]), (1, 2, [0, 3, 6, 9, 12, 15]), (2, 9, [0, 1, 11])]
)
def test_after_failures_of_the_longest_hint_a_question_rests_and_then_gets_one_try(patience, rest, expected):
    assert hinted_visits(replace(SETTINGS, patience=patience, rest=rest), 18) == expected


def test_a_success_after_a_rest_gives_back_all_the_patience():
    state = HintState(5)
    while not is_resting(state, SETTINGS):
        state = after_hint(state, 5, 0.0, SETTINGS)
    while is_resting(state, SETTINGS):
        state = after_rest(state, SETTINGS)
    assert state == HintState(5, SETTINGS.patience - 1)
    assert after_hint(state, 5, 0.25, SETTINGS) == HintState(5, 0)


def test_a_success_forgets_the_failures():
    assert after_hint(HintState(5, 2), 5, 0.25, SETTINGS).failures == 0
