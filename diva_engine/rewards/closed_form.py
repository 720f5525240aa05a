"""Closed forms such as 4\\sqrt{3}, \\frac{5\\pi}{2} or (1+sqrt(5))/2 as floats: most of what geometry asks for."""

from __future__ import annotations

import math
import re

MAX_DEPTH = 12
LARGEST = 1e6
SMALLEST = 1e-6

_TOKEN = re.compile(
    r" *(?:(?P<number>\d{1,3}(?:,\d{3})+(?![\d,])(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)"
    r"|(?P<power>\^|\*\*)|(?P<times>\\cdot(?![a-zA-Z])|\\times(?![a-zA-Z])|\*)|(?P<over>/|\\div(?![a-zA-Z]))"
    r"|(?P<sign>[+-])|(?P<open>[({])|(?P<close>[)}])"
    r"|(?P<fraction>\\frac)|(?P<root>\\?sqrt)|(?P<pi>\\pi|pi(?![a-zA-Z])))"
)
_ROOT_INDEX = re.compile(r" *\[ *(\d{1,2}) *\]")
_PLAIN_FRACTION = re.compile(r" *\\frac *\{ *\d+ *\} *\{ *\d+ *\}")
_OPERAND = ("open", "fraction", "root", "pi")  # what may stand beside a factor without a sign between


class _Unreadable(Exception):
    pass


def read_closed_form(text: str) -> tuple[float, str] | None:
    """(value, what follows it) of the closed form that a text begins with; None where it begins with none.

    Numbers, \\pi, \\frac, \\sqrt, brackets, + - * / and powers: floats only, so that it cannot take long. None, too,
    for what floats do not tell apart reliably: very small values, and large numbers on the way.
    """
    reader = _Reader(text)
    try:
        value = reader.sum(0)
    except (_Unreadable, ArithmeticError, ValueError, TypeError):
        return None
    return (value, text[reader.position :].strip()) if value == 0 or abs(value) >= SMALLEST else None


class _Reader:
    """Recursive descent, one method a level of precedence."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.position = 0

    def sum(self, depth: int) -> float:
        if depth > MAX_DEPTH:
            raise _Unreadable
        sign = self._take("sign")
        total = -self._product(depth) if sign == "-" else self._product(depth)
        while sign := self._take("sign"):
            total += -self._product(depth) if sign == "-" else self._product(depth)
        return total

    def _product(self, depth: int) -> float:
        value = self._factors(depth)
        if not abs(value) <= LARGEST:
            raise _Unreadable
        return value

    def _factors(self, depth: int) -> float:
        value = self._power(depth)
        while True:
            if self._take("times"):
                value *= self._power(depth)
            elif self._take("over"):
                value /= self._power(depth)
            elif self._peek() in _OPERAND:
                value *= self._power(depth)
            else:
                return value

    def _power(self, depth: int) -> float:
        is_number = self._peek() == "number"
        base = self._operand(depth)
        if is_number and _PLAIN_FRACTION.match(self.text, self.position):  # 3\frac{1}{2} is a mixed number
            return base + self._operand(depth)
        if not self._take("power"):
            return base
        sign = self._take("sign")
        exponent = self._operand(depth)
        value = base ** (-exponent if sign == "-" else exponent)
        if isinstance(value, complex) or self._peek() == "power":
            raise _Unreadable
        return float(value)

    def _operand(self, depth: int) -> float:
        kind = self._peek()
        if kind == "number":
            return float(self._take("number").replace(",", ""))
        if kind == "pi":
            self._take("pi")
            return math.pi
        if kind == "fraction":
            self._take("fraction")
            return self._bracket(depth) / self._bracket(depth)
        if kind == "root":
            return self._root(depth)
        return self._bracket(depth)

    def _root(self, depth: int) -> float:
        self._take("root")
        index = _ROOT_INDEX.match(self.text, self.position)
        if index:
            self.position = index.end()
        value = self._bracket(depth)
        return math.sqrt(value) if index is None else math.pow(value, 1 / int(index.group(1)))

    def _bracket(self, depth: int) -> float:
        opening = self._take("open")
        if not opening:
            raise _Unreadable
        value = self.sum(depth + 1)
        if self._take("close") != {"(": ")", "{": "}"}[opening]:
            raise _Unreadable
        return value

    def _peek(self) -> str | None:
        match = _TOKEN.match(self.text, self.position)
        return match.lastgroup if match else None

    def _take(self, kind: str) -> str:
        """The next token if it is of this kind, else ""."""
        match = _TOKEN.match(self.text, self.position)
        if match is None or match.lastgroup != kind:
            return ""
        self.position = match.end()
        return match.group(kind)
