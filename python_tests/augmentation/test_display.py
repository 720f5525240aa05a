"""What the person who waits sees."""

from __future__ import annotations

import io
import re

from rich.console import Console

from diva_engine.augmentation.checks import Rejected
from diva_engine.augmentation.display import display_over
from diva_engine.augmentation.journal import Outcome
from diva_engine.augmentation.tally import Tally

REJECTED = (Rejected("another answer", "x"),) * 2
OUTCOMES = [
    Outcome(0, "steps", "d", accepted=("a", "b"), requests=1, prompt_tokens=1000, completion_tokens=500),
    Outcome(1, "steps", "d", rejected=REJECTED, requests=2, prompt_tokens=2000, uncounted=1),
    Outcome(2, "paraphrases", "d", failed="HTTP 400: no"),
]


def shown(is_terminal: bool, outcomes: list[Outcome]) -> tuple[str, Tally]:
    written = io.StringIO()
    console = Console(file=written, force_terminal=is_terminal, width=160, color_system=None)
    tally = Tally(price_in=1.0, price_out=4.0)
    with display_over(len(outcomes), tally, console) as show:
        for outcome in outcomes:
            show(outcome)
    return written.getvalue(), tally


def test_the_bar_tells_how_far_how_long_and_how_much():
    text, tally = shown(True, OUTCOMES)
    assert "3/3" in text
    assert re.search(r"left +0:00:00", text)
    assert "in 3,000 out 500 tokens, cost 0.0050, 2 rejected" in text
    assert tally.cost == (3000 * 1.0 + 500 * 4.0) / 1e6


def test_a_log_file_is_given_a_few_lines():
    text, _ = shown(False, OUTCOMES * 100)
    lines = text.splitlines()
    assert 15 <= len(lines) <= 25
    assert lines[-1].startswith("asking: 300/300, 0 s left, in 300,000 out 50,000 tokens, cost 0.5000, 200 rejected")


def test_nothing_to_ask_shows_nothing():
    assert shown(True, [])[0] == ""


def test_the_summary_counts_by_kind_and_reason():
    _, tally = shown(False, OUTCOMES)
    assert tally.lines() == [
        "steps: 2 for 1 of 2 questions asked",
        "  rejected 2: another answer",
        "3 requests, in 3,000 out 500 tokens, cost 0.0050 (1 requests did not tell their tokens)",
    ]
