"""The table of decisions: which answers count as which. `A` marks those that only algebra can tell."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diva_engine.records import Problem
from diva_engine.rewards.answers import compare
from diva_engine.rewards.reward import AnswerReward, build_reward

# (answer, truth, verdict): R right and W wrong at once, AR right and AW wrong by algebra, X refused.
TABLE = [
    # integers and decimals
    ("12", "12", "R"), ("12", "13", "W"), ("12.", "12", "R"), ("12.0", "12", "R"), ("012", "12", "R"),
    ("+12", "12", "R"),
    ("-12", "12", "W"), ("- 5", "-5", "R"), (".5", "0.5", "R"), ("0.50", "0.5", "R"), ("0.333333", "1/3", "R"),
    ("0.33", "1/3", "W"), ("3.14", "3.14159", "W"), ("1000000", "1000001", "W"), ("0.0000001", "0.0000002", "W"),
    # thousands
    ("1,234", "1234", "R"), ("1{,}234", "1234", "R"), (r"1\,234", "1234", "R"), ("1 234", "1234", "R"),
    ("1,234,567.5", "1234567.5", "R"), ("12,34", "1234", "AW"), ("1,234", "1.234", "W"),
    # fractions
    (r"\frac12", "0.5", "R"), (r"\frac{1}{2}", "0.5", "R"), (r"\dfrac{1}{2}", "1/2", "R"), ("1/2", "0.5", "R"),
    (r"\frac{2}{4}", r"\frac{1}{2}", "R"), (r"-\frac{1}{2}", "-0.5", "R"), (r"\frac{-1}{2}", "-0.5", "R"),
    ("1 1/2", "1.5", "R"), ("1 1/2", "11/2", "W"), (r"1\frac{1}{2}", "3/2", "R"), (r"-1\frac12", "-1.5", "R"),
    ("1/3", "1/4", "W"), ("1/0", "0", "AW"),
    # powers of ten
    (r"3\times10^4", "30000", "R"), (r"1.5 \times 10^{-3}", "0.0015", "R"), ("3e4", "30000", "R"),
    (r"2\cdot10^{3}", "2000", "R"),
    # degrees
    (r"65^\circ", "65°", "R"), ("65°", "65", "R"), (r"65^{\circ}", "65", "R"), ("65 degrees", "65", "R"),
    ("65º", "65", "R"),
    (r"65\degree", "65", "R"), ("65", "65°", "R"), ("65°", "66°", "W"), ("65°", "65 cm", "W"),
    (r"\sin 30^\circ", "0.5", "AR"),
    # percents and ratios
    (r"50\%", "0.5", "R"), (r"50\%", "50", "R"), ("50%", r"50\%", "R"), ("0.5", "50%", "R"), ("50 percent", "50%", "R"),
    ("5%", "0.5", "W"), ("3:4", "3:4", "R"), ("6:8", "3:4", "R"), ("3 : 4", "3:4", "R"), ("3/4", "3:4", "R"),
    ("3 to 4", "3:4", "R"), ("4:3", "3:4", "W"), ("1:2:3", "1:2:3", "R"), ("1:2:3", "1:2:4", "AW"),
    # choice letters
    ("B", "B", "R"), ("(B)", "B", "R"), (r"\text{B}", "B", "R"), (r"\textbf{(B)}", "B", "R"), ("b", "B", "R"),
    ("B.", "B", "R"),
    ("[B]", "B", "R"), ("option B", "B", "R"), ("B. 45", "B", "R"), ("B) 45 degrees", "B", "R"), ("(B) 45", "B", "R"),
    ("B. 45", "45", "R"), ("B. 45", "C. 45", "W"), ("C", "B", "W"), ("45", "B", "W"), ("B", "45", "W"),
    ("A, B", "B", "AW"),
    # units
    ("8 cm", "8", "R"), ("8cm", "8 cm", "R"), (r"8\text{ cm}", "8", "R"), (r"8\ \mathrm{cm}", "8 centimeters", "R"),
    ("8 cm", "8 m", "W"), ("8 cm", "8 cm^2", "W"), ("8 cm²", "8 square centimeters", "R"),
    (r"8\,\text{cm}^{2}", "8 cm^2", "R"),
    ("100 km/h", "100", "R"), ("5 m/s", "5 m", "W"), ("12 apples", "12", "R"), ("$12", "12 dollars", "R"),
    (r"\$12", "12", "R"),
    ("20 °C", "20", "R"), ("5x", "5", "AW"), ("9 cm", "8", "W"), (r"4\sqrt{2}\text{ cm}", r"4\sqrt{2}", "R"),
    # names and dressing
    ("x=3", "3", "R"), ("x = 3", "x=3", "R"), ("y=3", "x=3", "W"), (r"\angle ABC = 65^\circ", "65", "R"),
    (r"\approx 3.14", "3.14", "R"),
    ("$12$", "12", "R"), (r"\(12\)", "12", "R"), ("**12**", "12", "R"), ('"12"', "12", "R"), ("{5}", "5", "R"),
    ("((5))", "5", "R"),
    (r"\left( 3, 4 \right)", "(3,4)", "R"), (" 7 \n", "7", "R"),
    # words, and letters that are no product
    ("tea", "eat", "W"), ("CAB", "ABC", "W"), ("NO", "ON", "W"), ("AB", "BA", "AR"), ("xy", "yx", "AR"),
    ("tea", "tea.", "R"),
    ("α", "β", "W"), ("等腰三角形", "等腰三角形。", "R"), ("等腰", "等边", "W"), ("the cat", "the dog", "W"),
    ("ABC", "A", "W"),
    ("red circle", "circle", "W"),
    ("yes", "Yes", "R"), (r"\text{Yes}", "yes", "R"), ("yes", "no", "W"),
    ("isosceles triangle", "Isosceles  Triangle", "R"),
    ("red", "blue", "W"), ("twelve", "12", "W"), ("infinity", r"\infty", "R"),
    # digits and signs of other scripts
    ("٣", "3", "R"), ("５", "5", "R"), ("−5", "-5", "R"), ("½", "0.5", "R"), ("2½", "2.5", "R"),
    ("2√3", r"2\sqrt{3}", "R"),
    ("25π", r"25\pi", "R"), ("∠ABC", r"\angle ABC", "R"), ("x²+1", "x^2+1", "R"), ("3：4", "3:4", "R"),
    # closed forms
    (r"4\sqrt{3}", r"4\sqrt{2}", "W"), (r"\frac{5\pi}{2}", r"2.5\pi", "R"),
    (r"(1+\sqrt{5})/2", r"\frac{1+\sqrt5}{2}", "R"),
    (r"25\pi\text{ cm}^2", r"25\pi", "R"), (r"25\pi", "78.54", "W"), (r"\sqrt[3]{8}", "2", "R"), ("2^{-1}", "0.5", "R"),
    (r"-2\sqrt{3}", r"2\sqrt{3}", "W"), (r"\frac{\pi}{2}", "1.570796", "R"), (r"2^{100}+1", "2^{100}", "AW"),
    (r"x = 2\sqrt{3}", r"\sqrt{12}", "R"), (r"2\sqrt{3}, 5", r"2\sqrt{3}", "AW"), (r"\sqrt{-4}", "2", "AW"),
    (r"3\frac{1}{2}\pi", r"3.5\pi", "R"), (r"10^{6}\pi", r"1000000\pi", "AR"),
    (r"3\frac{\pi}{2}", r"1.5\pi", "R"), ("(3)(4)", "12", "R"), ("2(3+4)", "14", "R"),
    # algebra
    (r"2\sqrt3", r"\sqrt{12}", "R"), ("2√3", "√12", "R"), (r"\frac{\sqrt{3}}{2}", r"\sqrt{3}/2", "R"),
    ("(x+1)^2", "x^2+2x+1", "AR"),
    ("x+1", "x+2", "AW"), (r"\frac{10}{4}\pi", r"2.5\pi", "R"), (r"\pi", "3.14", "W"), ("2^{10}", "1024", "R"),
    ("5!", "120", "AR"),
    (r"\log_2 8", "3", "AR"), ("x>3", "3<x", "AR"), ("3+4i", "4i+3", "AR"), ("2*sqrt(3)", r"2\sqrt{3}", "R"),
    # several values
    (r"(1, \frac{1}{2})", "(1, 0.5)", "R"), ("1, 2", "(1,2)", "R"), ("2, 1", "(1,2)", "W"), ("(1,2,3)", "(1,2)", "W"),
    (r"\{1,2\}", "(1,2)", "W"), ("1,2", "1<x<2", "W"), ("x=1 or x=2", "1<x<2", "W"), ("1<x<2", "(1,2)", "AR"),
    ("(x+1, 2)", "(1+x, 2)", "AR"), ("A and C", "A, C", "AR"), ("A, C", "C, A", "AR"), ("A, B", "A, C", "AW"),
    ("(1,2)", "(1, 2)", "R"), ("(1,2)", "(2,1)", "W"), ("[1,2]", "(1,2)", "AW"), (r"\{1,2\}", r"\{2,1\}", "AR"),
    ("2,1", "1,2", "AR"),
    ("12 and 13", "12", "AW"), ("5 or 6", "5", "AW"), ("x=1 or x=2", "1,2", "AR"),
    # nothing, and what algebra must not see
    ("", "5", "W"), ("10^{10^{10}}", "5", "X"), ("10^10^10", "5", "X"), ("9**9**9", "5", "X"),
    ("9999999999999!", "5", "X"),
    ("(10!)!", "5", "X"), ("x^{99999999}", "5", "X"), ("((99^{99})^{99})^{999}^{9}", "5", "X"),
    (r"\binom{10^9}{5000}", "5", "X"),
    ("(" * 50 + "x" + ")" * 50, "5", "X"), ("x" * 401, "5", "X"), ("7" * 1_000_000, "5", "X"),
    ("e^{x^2}", "e^{2x^2}/e^{x^2}", "AR"), ("x^2+y^2+z^9", "z^9+y^2+x^2", "AR"),
]  # fmt: skip


@pytest.fixture(scope="module")
def reward() -> Iterator[AnswerReward]:
    built = build_reward(time_limit_s=20.0, batch_time_limit_s=60.0)
    assert isinstance(built, AnswerReward)
    yield built
    built.close()


def test_the_table_is_long_enough() -> None:
    assert len(TABLE) >= 100


@pytest.mark.parametrize(("answer", "truth", "verdict"), TABLE, ids=[f"{a[:24]}|{t[:16]}" for a, t, _ in TABLE])
def test_judged_at_once_or_left_to_algebra(answer: str, truth: str, verdict: str) -> None:
    expected = {"R": "right", "W": "wrong", "X": "refused", "AR": "ask", "AW": "ask"}[verdict]
    assert compare(answer, truth) == expected


CHARACTERS = list("0123456789.,:;+-*/^=<>!%$°()[]{}| \\abxABC√π½²−")
LATEX = [
    r"\frac",
    r"\sqrt",
    r"\pi",
    r"\text",
    r"\{",
    r"\}",
    r"\cdot",
    r"\times",
    "10",
    " or ",
    "cm",
    "{1}",
    "{2}",
    "^{",
]
FRAGMENTS = st.sampled_from(CHARACTERS + LATEX)
ANYTHING = st.text(max_size=40) | st.lists(FRAGMENTS, max_size=12).map("".join)


@given(ANYTHING, ANYTHING)
def test_nothing_that_a_model_writes_raises(answer: str, truth: str) -> None:
    assert compare(answer, truth) in ("right", "wrong", "refused", "ask")
    assert compare(answer, answer) == ("right" if answer.strip() else "wrong")


def test_what_algebra_decides(reward: AnswerReward) -> None:
    asked = [(answer, truth, verdict) for answer, truth, verdict in TABLE if verdict in ("AR", "AW")]
    responses = [rf"\boxed{{{answer}}}" for answer, _, _ in asked]
    scores = reward(responses, [Problem(id="q", text="", answer=truth) for _, truth, _ in asked])
    wrong = [row for row, score in zip(asked, scores, strict=True) if score.accuracy != float(row[2] == "AR")]
    assert wrong == []
    assert reward.take_counters() == {"algebra": len(asked), "refused": 0, "timeouts": 0, "errors": 0}
