"""Comparing an answer with the truth: at once where reading both decides it, else by math-verify in a worker."""

from __future__ import annotations

import math
from fractions import Fraction

from diva_engine.rewards.guards import is_costly
from diva_engine.rewards.lists import Verdict, compare_lists
from diva_engine.rewards.normalization import Answer, read_answer
from diva_engine.rewards.units import units_agree

Number = Fraction | float

MAX_ANSWER_CHARS = 400
TOLERANCE = Fraction(1, 10**6)  # between decimals, relative below 1 and absolute above, as math-verify's six places


def compare(prediction: str, truth: str) -> Verdict:
    """Judge one answer without a computer-algebra system.

    `right` and `wrong` are final. `ask`: only algebra can tell ((x+1)^2 and x^2+2x+1). `refused`: the answer would
    cost the algebra too much (towers of powers, giant factorials, very long or deep texts): it counts as wrong.
    """
    prediction, truth = prediction.strip(), truth.strip()
    if not prediction:
        return "wrong"
    if prediction == truth:
        return "right"
    if max(len(prediction), len(truth)) > MAX_ANSWER_CHARS:
        return "refused"
    read = read_answer(prediction)
    verdict = _compare_read(read, read_answer(truth))
    is_refused = verdict == "ask" and (len(read.latex) > 2 * MAX_ANSWER_CHARS or is_costly(read.latex))
    return "refused" if is_refused else verdict


def _compare_read(left: Answer, right: Answer) -> Verdict:
    if left.name and right.name and left.name != right.name:
        return "wrong"
    if left.letter and right.letter:
        return "right" if left.letter == right.letter else "wrong"
    if left.value is not None and right.value is not None:
        return "right" if _same_number(left, right) else "wrong"
    if left.text == right.text:
        return "right"
    plain = [answer.value is not None or answer.is_words or answer.is_bare_letter for answer in (left, right)]
    if all(plain) or left.is_words or right.is_words:
        return "wrong"
    return compare_lists(left.latex, right.latex, lambda a, b: _compare_read(read_answer(a), read_answer(b)))


def _same_number(left: Answer, right: Answer) -> bool:
    assert left.value is not None
    assert right.value is not None
    if not units_agree(left.unit, right.unit):
        return False
    if _is_close(left.value, right.value):
        return True
    if left.is_percent and not right.is_percent:
        return _is_close(left.value / 100, right.value)
    if right.is_percent and not left.is_percent:
        return _is_close(left.value, right.value / 100)
    return False


def _is_close(left: Number, right: Number) -> bool:
    if left == right:
        return True
    if isinstance(left, Fraction) and isinstance(right, Fraction):
        is_integers = left.denominator == 1 and right.denominator == 1
        return not is_integers and abs(left - right) <= TOLERANCE * min(Fraction(1), abs(right))
    try:
        left, right = float(left), float(right)
    except OverflowError:
        return False
    return math.isclose(left, right, rel_tol=1e-12) or abs(left - right) <= float(TOLERANCE) * min(1.0, abs(right))
