"""The demanded form: EasyR1's by default, matched in linear time."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diva_engine.records import UserError
from diva_engine.rewards.format import DEFAULT_FORMAT_PATTERN, FormatPattern, tighten_tags

CASES = {
    "as demanded": (r"<think>a</think> so \boxed{1} .", True),
    "line ends inside": ("<think>a\nb</think>\n\\boxed{1}\n", True),
    "spaces in the tags": (r"< think > a < / think > \boxed{1}", True),
    "space before the thought": (r"  <think>a</think>\boxed{1}", True),
    "no thought": (r"\boxed{1}", False),
    "text before the thought": (r"Well, <think>a</think>\boxed{1}", False),
    "thought not closed": (r"<think>a \boxed{1}", False),
    "box inside the thought only": (r"<think>\boxed{1}</think> 1", False),
    "box not closed": (r"<think>a</think>\boxed{1", False),
    "empty": ("", False),
}


@pytest.mark.parametrize(("response", "is_right"), CASES.values(), ids=CASES)
def test_default_form(response: str, is_right: bool) -> None:
    pattern = FormatPattern()
    assert not pattern.needs_worker
    assert pattern.matches(tighten_tags(response)) is is_right


PIECES = st.sampled_from(["<think>", "</think>", r"\boxed{", "}", "a", " ", "\n", "<answer>", "</answer>", "{"])
PATTERNS = [DEFAULT_FORMAT_PATTERN, r"<think>.*?</think>.*<answer>.*</answer>", r".*</think>.*", "a.*a", r"\}.*\{"]


@pytest.mark.parametrize("pattern", PATTERNS)
@given(pieces=st.lists(PIECES, max_size=12))
def test_the_linear_match_is_the_regular_expression(pattern: str, pieces: list[str]) -> None:
    text = "".join(pieces)
    assert FormatPattern(pattern).matches(text) == (re.fullmatch(pattern, text, re.DOTALL) is not None)


@pytest.mark.parametrize("pattern", [r"<think>\s*.*", r"(a|b)+", r"a{2}", r"\d.*", "[ab].*", "a?b"])
def test_other_patterns_go_to_a_worker(pattern: str) -> None:
    assert FormatPattern(pattern).needs_worker


def test_a_broken_pattern_is_named() -> None:
    with pytest.raises(UserError, match=r"format_pattern '\(a' is not a regular expression: missing \)"):
        FormatPattern("(a")


def test_a_response_that_chokes_the_regular_expression_takes_no_time() -> None:
    hostile = "<think>" + "</think>\\boxed{" * 50_000
    start = time.process_time()
    assert not FormatPattern().matches(tighten_tags(hostile + " " * 500_000))
    assert time.process_time() - start < 2.0
