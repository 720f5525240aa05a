"""The console: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import io

import pytest
from rich.console import Console as Terminal

from diva_engine.trainer.console import COLUMNS, Console, duration, written
from diva_engine.trainer.metric_names import METRICS

METRICS_OF_A_STEP = {
    "reward/mean": 0.6125,
    "reward/accuracy": 0.625,
    "groups/dead": 0.25,
    "groups/solved": 0.125,
    "questions/utilisation": 0.5,
    "difficulty/mean": 4.87,
    "response/length": 31.4,
    "throughput/tokens_per_s": 5230.0,
    "time/step_s": 1.48,
}


def plain(num_steps: int) -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    return Console(num_steps, terminal=Terminal(file=out, force_terminal=False, width=80)), out


def test_every_column_is_a_known_metric() -> None:
    assert [column.metric for column in COLUMNS if column.metric not in METRICS] == []


def test_a_plain_line_a_step_where_stdout_is_no_terminal() -> None:
    console, out = plain(2)
    console.step(1, METRICS_OF_A_STEP)
    console.step(2, {"reward/mean": float("nan")})
    console.close("done [here]")
    first, second, last = out.getvalue().splitlines()
    assert first.startswith(
        "step 1/2  reward 0.613  accuracy 62.5%  dead 25%  solved 12%  useful 50%  difficulty 4.87  length 31.4  "
        "tokens/s 5,230  s/step 1.48  "
    )
    assert first.endswith(" left")
    assert second.startswith("step 2/2  reward -  accuracy -  dead -")
    assert last == "done [here]"


def test_a_long_run_prints_about_two_hundred_lines() -> None:
    console, out = plain(10_000)
    for step in range(1, 10_001):
        console.step(step, METRICS_OF_A_STEP)
    lines = out.getvalue().splitlines()
    assert len(lines) == 201
    assert lines[0].startswith("step 1/10000")
    assert lines[-1].startswith("step 10000/10000")


def test_phases_and_held_out_accuracy_have_their_lines() -> None:
    console, out = plain(5)
    console.phase("held-out accuracy")
    console.validation(0, {"val/accuracy": 0.415, "val/accuracy/difficulty=1": 0.9, "val/accuracy/difficulty=9": 0.0})
    assert out.getvalue().splitlines() == [
        "held-out accuracy ...",
        "held-out accuracy after step 0: 41.5% (difficulty=1 90%, difficulty=9 0%)",
    ]


def test_the_live_table_shows_recent_steps_progress_and_the_last_line() -> None:
    out = io.StringIO()
    console = Console(40, terminal=Terminal(file=out, force_terminal=True, width=120, _environ={"TERM": "xterm"}))
    console.phase("held-out accuracy")
    for step in range(1, 21):
        console.step(step, METRICS_OF_A_STEP)
    console.validation(20, {"val/accuracy": 0.5})
    console.close("held-out accuracy 20% -> 50%; the run lies in runs/x")
    shown = out.getvalue()
    final = shown[shown.rindex("s/step") :]
    assert "step 20/40" in final
    assert "│    9 │" in final
    assert "│    8 │" not in final
    assert "held-out accuracy after step 20: 50.0%" in final
    assert final.rstrip().endswith("held-out accuracy 20% -> 50%; the run lies in runs/x")


def test_a_console_not_shown_is_silent() -> None:
    out = io.StringIO()
    console = Console(3, is_shown=False, terminal=Terminal(file=out, force_terminal=True))
    console.phase("saving")
    console.step(1, METRICS_OF_A_STEP)
    console.close("done")
    assert out.getvalue() == ""


@pytest.mark.parametrize(("seconds", "text"), [(0.2, "0 s"), (59.0, "59 s"), (187, "3:07"), (7387, "2:03:07")])
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_number_that_is_none_is_a_dash() -> None:
    assert [written(value, ".2f") for value in (None, float("inf"), 1.0)] == ["-", "-", "1.00"]
