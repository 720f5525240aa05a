"""Answers of several values: points, whose order counts, against lists, sets and inequalities."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Literal

Verdict = Literal["right", "wrong", "refused", "ask"]
Shape = Literal["point", "list", "set", "inequality", "other"]

_JOINED = re.compile(r" +(?:and|or) +")
_RELATION = re.compile(r"[<>]|\\(?:le|ge|ne|lt|gt)(?:q|slant)*(?![A-Za-z])")


def compare_lists(left: str, right: str, compare: Callable[[str, str], Verdict]) -> Verdict:
    """Judge two answers of which at least one holds several values; `ask` where neither does.

    A point (1,2) is compared value by value, with a point or a bare list. Algebra, which takes (1,2) for an open
    interval and both for a set, decides the rest, except that a set is no point and no inequality is a list of values.
    """
    shapes = {shape_of(left), shape_of(right)}
    if shapes in ({"set", "point"}, {"set", "inequality"}, {"list", "inequality"}):
        return "wrong"
    if "point" not in shapes or not shapes <= {"point", "list"}:
        return "ask"
    left_values, right_values = split_values(left), split_values(right)
    if len(left_values) != len(right_values):
        return "wrong"
    verdicts = [compare(a, b) for a, b in zip(left_values, right_values, strict=True)]
    if "wrong" in verdicts:
        return "wrong"
    return "right" if set(verdicts) == {"right"} else "ask"


def shape_of(latex: str) -> Shape:
    if _RELATION.search(latex):
        return "inequality"
    text = _JOINED.sub(",", latex.strip())
    if text.startswith(r"\{") and text.endswith(r"\}"):
        return "set"
    if len(split_values(text)) < 2:
        return "other"
    if text[0] == "(" and text[-1] == ")" and len(split_values(text, opened=False)) == 1:
        return "point"
    return "list" if len(split_values(text, opened=False)) > 1 else "other"


def split_values(latex: str, opened: bool = True) -> list[str]:
    """The values between the outermost commas; with `opened`, round brackets around the whole do not count."""
    text = _JOINED.sub(",", latex.strip())
    if opened and text[:1] == "(" and text[-1:] == ")":
        inside = text[1:-1]
        if _is_balanced(inside):
            text = inside
    values, depth, start = [], 0, 0
    for position, character in enumerate(text):
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth == 0:
            values.append(text[start:position].strip())
            start = position + 1
    return [*values, text[start:].strip()]


def _is_balanced(text: str) -> bool:
    depth = 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        if depth < 0:
            return False
    return depth == 0
