"""What of a text must not change: its numbers, options, symbols and negations."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from dataclasses import dataclass
from decimal import Decimal

_NUMBER = re.compile(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?(?!\d)|\d+(?:\.\d+)?|\.\d+")
_OPTION_MARK = re.compile(r"(?:^|(?<=[\s(\[]))[(\[]?([A-J])[.:)\]、．](?=\s|[^\s.])")
_SYMBOL = re.compile(r"(?<![A-Za-z\\])(?:[A-Z]{2,4}|[B-HJ-Z]|[b-hj-z])(?![A-Za-z])")
_NEGATION = re.compile(
    r"\b(?:not|no|never|none|except|cannot|without|neither|nor|incorrect|false|wrong)\b|n['\u2019]t\b", re.IGNORECASE
)


@dataclass(frozen=True)
class Options:
    """A question's stem and its answer options by letter; none: the whole question is the stem."""

    stem: str
    texts: dict[str, str]


def numbers_in(text: str) -> Counter[Decimal]:
    """The numbers that stand in digits, by value: 1,000 and 1000.0 are one. Signs are left aside."""
    plain = unicodedata.normalize("NFKC", text)
    return Counter(Decimal(found.replace(",", "")).normalize() for found in _NUMBER.findall(plain))


def split_options(text: str) -> Options:
    """Takes the last run of marks A, B, ... ("A.", "(A)", "A:") with two letters or more for the options."""
    marks = list(_OPTION_MARK.finditer(text))
    start = max((i for i, mark in enumerate(marks) if mark.group(1) == "A"), default=None)
    if start is None:
        return Options(text, {})
    run = [marks[start]]
    for mark in marks[start + 1 :]:
        if ord(mark.group(1)) != ord(run[-1].group(1)) + 1:
            break
        run.append(mark)
    if len(run) < 2:
        return Options(text, {})
    ends = [mark.start() for mark in run[1:]] + [len(text)]
    texts = {mark.group(1): text[mark.end() : end].strip() for mark, end in zip(run, ends, strict=True)}
    return Options(text[: run[0].start()].strip(), texts)


def symbols_in(text: str) -> set[str]:
    """The letters that name points, lines and unknowns: of ABC, x and F. A and I alone are words."""
    return {letter for word in _SYMBOL.findall(text) for letter in word}


def is_negated(text: str) -> bool:
    return _NEGATION.search(text) is not None


def folded(text: str) -> str:
    """For comparison: compatibility forms, case, spaces and a closing point aside."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split()).rstrip(" .;,")
