"""What the comparison makes of a curve: time to target, censoring, areas, medians."""

import math

import pytest

from bench.learn.curve import Reached, area_under_curve, is_settled, median_reached, time_to_target

ROLLOUTS = [0, 640, 1280, 1920]


@pytest.mark.parametrize(
    ("accuracy", "target", "spent", "is_censored"),
    [
        pytest.param([0.1, 0.2, 0.4, 0.6], 0.3, 960, False, id="half way between two evaluations"),
        pytest.param([0.1, 0.2, 0.4, 0.6], 0.4, 1280, False, id="exactly at an evaluation"),
        pytest.param([0.5, 0.2, 0.4, 0.6], 0.3, 0, False, id="before the first step"),
        pytest.param([0.1, 0.4, 0.2, 0.6], 0.3, 640 * 2 / 3, False, id="the first time counts, though it falls again"),
        pytest.param([0.1, 0.2, 0.4, 0.6], 0.7, 1920, True, id="never"),
    ],
)
def test_time_to_target_is_interpolated_and_censored(accuracy, target, spent, is_censored):
    reached = time_to_target(ROLLOUTS, accuracy, target)
    assert reached.spent == pytest.approx(spent)
    assert reached.is_censored == is_censored


def test_a_censored_run_is_shown_as_such():
    assert [str(Reached(1920.4, True)), str(Reached(1920.4, False))] == [">1,920", "1,920"]


@pytest.mark.parametrize(
    ("accuracy", "until", "area"),
    [
        pytest.param([0.5, 0.5, 0.5, 0.5], 1920, 0.5, id="flat"),
        pytest.param([0.0, 0.3, 0.6, 0.9], 1920, 0.45, id="a line"),
        pytest.param([0.0, 0.3, 0.6, 0.9], 960, 0.225, id="cut within a stretch: a line to .45"),
    ],
)
def test_area_is_the_mean_accuracy_up_to_a_point(accuracy, until, area):
    assert area_under_curve(ROLLOUTS, accuracy, until) == pytest.approx(area)


def test_a_curve_that_ends_early_has_no_area():
    assert math.isnan(area_under_curve(ROLLOUTS, [0.1] * 4, 2560))


@pytest.mark.parametrize(
    ("runs", "spent", "is_censored"),
    [
        pytest.param([(100, False), (300, False), (200, False)], 200, False, id="three seeds"),
        pytest.param(
            [(100, False), (200, False), (300, False), (400, False)], 250, False, id="four: mean of the middle"
        ),
        pytest.param([(100, False), (200, False), (300, False), (900, True)], 250, False, id="the worst is censored"),
        pytest.param(
            [(100, False), (200, False), (900, True), (900, True)], 550, True, id="half of them: a lower bound"
        ),
        pytest.param([(50, True), (200, False), (300, False)], 200, True, id="one that ended early might lie above"),
    ],
)
def test_the_median_says_whether_it_is_a_lower_bound(runs, spent, is_censored):
    assert median_reached([Reached(*run) for run in runs]) == Reached(spent, is_censored)


@pytest.mark.parametrize(
    ("everywhere", "hard", "settled"),
    [
        ([0.1, 0.6, 0.7], [0.0, 0.3, 0.3], True),
        ([0.1, 0.6, 0.7], [0.0, 0.2, 0.3], False),
        ([0.7], [0.3], False),
    ],
)
def test_a_run_settles_after_two_evaluations_at_both_targets(everywhere, hard, settled):
    assert is_settled([everywhere, hard], [0.5, 0.3]) == settled
