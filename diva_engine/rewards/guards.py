"""Answers that computer algebra must not be given: one look at the text, on the safe side."""

from __future__ import annotations

import re

MAX_DEPTH = 12  # brackets within brackets
MAX_EXPONENT = 10_000
MAX_EXPONENT_PRODUCT = 10**7  # of all exponents: ((9^9)^9)^9 and its like
MAX_TOWER_NUMBER = 3  # numbers in the exponent of an exponent
MAX_FACTORIAL = 1_000
MAX_COUNTING_NUMBER = 1_000  # numbers beside binomials, sums and products

_EXPONENT = re.compile(r"(?:\^|\*\*)\s*[{(]*\s*[+-]?\s*(\d+)")
_FACTORIAL = re.compile(r"(\d+)\s*\}?\)?\s*!|!\s*!|[)}]\s*!")
_COUNTING = re.compile(r"\\(?:[dt]?binom|prod|sum|int|lim)")
_TOKEN = re.compile(
    r"(?P<power>\^|\*\*)|(?P<open>[{(\[])|(?P<close>[)}\]])|(?P<number>\d+)|(?P<sign>[+-])|\\?[A-Za-z]+|\S"
)


def is_costly(answer: str) -> bool:
    """Would computer algebra take very long over this answer? Linear in its length."""
    exponents = [int(digits) for digits in _EXPONENT.findall(answer)]
    product = 1
    for exponent in exponents:
        product *= max(1, exponent)
    if product > MAX_EXPONENT_PRODUCT or max(exponents, default=0) > MAX_EXPONENT:
        return True
    for factorial in _FACTORIAL.finditer(answer):
        if factorial.group(1) is None or int(factorial.group(1)) > MAX_FACTORIAL:
            return True
    if _COUNTING.search(answer) and any(int(digits) > MAX_COUNTING_NUMBER for digits in re.findall(r"\d+", answer)):
        return True
    return _is_deep_or_tower(answer)


def _is_deep_or_tower(answer: str) -> bool:
    """Brackets nested too deep, or a power tower: follows the exponent level of every number."""
    outer: list[tuple[int, int]] = []  # exponent level and chained powers outside each open bracket
    level = chained = 0  # `chained` counts the powers of a^b^c that still wait for their operand's end
    awaits_operand = False
    for token in _TOKEN.finditer(answer):
        kind = token.lastgroup
        if kind == "power":
            chained += 1
            awaits_operand = True
        elif kind == "open":
            outer.append((level, chained))
            level, chained = level + (chained if awaits_operand else 0), 0
            awaits_operand = False
        elif kind == "close":
            level, chained = outer.pop() if outer else (0, 0)
        elif not (kind == "sign" and awaits_operand):
            chained = chained if awaits_operand else 0
            awaits_operand = False
            if kind == "number" and level + chained >= 2 and int(token.group()) > MAX_TOWER_NUMBER:
                return True
        if len(outer) > MAX_DEPTH or level + chained > 3:
            return True
    return False
