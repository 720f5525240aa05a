"""Reading an answer: from what a person or a model writes to a number with unit, a choice letter, words, or LaTeX."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache

from diva_engine.rewards.closed_form import read_closed_form
from diva_engine.rewards.units import MATHEMATICAL_WORDS, read_unit

_UNICODE = {
    "−": "-", "–": "-", "—": "-", "﹣": "-", "⁄": "/", "∕": "/", "÷": "/", "×": r"\times ", "·": r"\cdot ",
    "π": r"\pi ", "∞": r"\infty ", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "≈": r"\approx ", "±": r"\pm ",
    "∠": r"\angle ", "△": r"\triangle ", "θ": r"\theta ", "º": "°", "˚": "°", "∘": "°", "：": ":", "∶": ":",
    "\u2009": "", "\u202f": "", "\u200b": "", "\ufeff": "",
    "½": " 1/2", "⅓": " 1/3", "⅔": " 2/3", "¼": " 1/4", "¾": " 3/4", "⅕": " 1/5", "⅖": " 2/5", "⅗": " 3/5",
    "⅘": " 4/5", "⅙": " 1/6", "⅚": " 5/6", "⅛": " 1/8", "⅜": " 3/8", "⅝": " 5/8", "⅞": " 7/8",
    "⁰": "^0", "¹": "^1", "²": "^2", "³": "^3", "⁴": "^4", "⁵": "^5", "⁶": "^6", "⁷": "^7", "⁸": "^8", "⁹": "^9",
}  # fmt: skip
_UNICODE_TABLE = str.maketrans(_UNICODE)
_UNICODE_ROOT = re.compile(r"√\s*(?:\(([^()]*)\)|(\d+(?:\.\d+)?|[A-Za-z]))")

_REWRITES: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"(?<=\d)\\[,!:; ](?=\d)|\{,\}"), ","),  # a thousands mark
    (re.compile(r"\\[,!:; ]|\\q?quad\b|~"), " "),
    (re.compile(r"\\(?:left|right|displaystyle|limits)(?![A-Za-z])|\\[()\[\]]"), ""),
    (re.compile(r"\\[dtc]frac(?![A-Za-z])"), r"\\frac"),
    (re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathit|mathsf|mbox|operatorname|bm|boldsymbol)\s*"
                r"\{([^{}]*)\}"), r" \1 "),
    (re.compile(r"\s*\^\s*\{?\s*\\circ\s*\}?|\\degrees?(?![A-Za-z])|\s*\\circ(?![A-Za-z])"), "°"),
    (re.compile(r"\\%|\bper ?cent\b"), "%"),
    (re.compile(r"\\?\$|[€£¥]"), ""),
    (re.compile(r"\\frac\s*(\d)\s*(\d)(?!\d)"), r"\\frac{\1}{\2}"),
    (re.compile(r"\\frac\s*(\d)\s*\{"), r"\\frac{\1}{"),
    (re.compile(r"\\sqrt\s*(\d)(?!\d)"), r"\\sqrt{\1}"),
    (re.compile(r"\b(?:positive )?infinity\b"), r"\\infty"),
    (re.compile(r"\s+"), " "),
)  # fmt: skip

_N = r"[+-]? ?(?:\d{1,3}(?:[, ]\d{3})+(?:\.\d+)?|\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d{1,3})?"
_TEN_POWER = re.compile(rf"({_N}) ?(?:\\times|\\cdot|\*|x) ?10 ?\^ ?\{{? ?([+-]?\d{{1,3}}) ?\}}?(?!\d)")
_MIXED = re.compile(r"([+-]?) ?(\d+)(?: ?\\frac ?\{ ?(\d+) ?\} ?\{ ?(\d+) ?\}| (\d+) ?/ ?(\d+))(?!\d)")
_FRACTION = re.compile(rf"([+-]?) ?\\frac ?\{{ ?({_N}) ?\}} ?\{{ ?({_N}) ?\}}")
_QUOTIENT = re.compile(rf"({_N}) ?/ ?({_N})(?![\d.])")
_PLAIN = re.compile(rf"({_N})(?![\d.,])")
_RATIO = re.compile(r"\d+(?:\.\d+)?(?: ?(?::| to ) ?\d+(?:\.\d+)?)+")

_NAME = re.compile(r"([A-Za-z\\][A-Za-z0-9_\\{} ]{0,30}?) ?(?:=|\\approx) ?([^=]+)")
_APPROXIMATELY = re.compile(r"(?:\\approx|approximately|about)\s+(?=[-+\d.])|=\s*")
_LETTER = re.compile(r"(?:(?:option|choice|answer) )?[(\[]? ?([A-Za-z]) ?[)\]]?[.:]?", re.IGNORECASE)
_LETTER_AND_TEXT = re.compile(r"\(?([A-J])(?:[.)] ?|: )(?=\S)(.+)")
_TRIGONOMETRY = re.compile(r"\\?(?:sin|cos|tan|cot|sec|csc)(?![a-z])")
_DEGREES = re.compile(r"(\d+(?:\.\d+)?)°")
_WORDS = re.compile(r"[^\W\d_](?:[^\W\d_]|[ '\-])*")
_SHORT_WORDS = frozenset({"no", "up", "on", "in", "to", "it", "he", "we", "go"})


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer as read. `value` is set for every number: exact where rational, a float for other closed forms."""

    text: str  # without spaces and dressing, for equality
    latex: str  # what math-verify is given
    value: Fraction | float | None = None
    unit: str = ""
    is_percent: bool = False
    letter: str = ""  # a choice letter or one-letter name, upper case
    name: str = ""  # "x" of "x = 3"
    is_words: bool = False

    @property
    def is_bare_letter(self) -> bool:
        return len(self.text) == 1 and bool(self.letter)


@lru_cache(maxsize=65536)
def read_answer(raw: str) -> Answer:
    """Read one answer. The caller bounds its length."""
    text = _unwrap(_plain_text(raw))
    labelled = _LETTER_AND_TEXT.fullmatch(text)
    if labelled and not _LETTER.fullmatch(text):
        return replace(read_answer(labelled.group(2)), letter=labelled.group(1))
    letter = _LETTER.fullmatch(text)
    if letter:
        return Answer(text=letter.group(1), latex=letter.group(1), letter=letter.group(1).upper())
    name, text = _split_name(text)
    return replace(_read_unnamed(text), name=name)


def _read_unnamed(text: str) -> Answer:
    compact = text.replace(" ", "")
    latex = _DEGREES.sub(r"(\1 \\pi/180)", text) if _TRIGONOMETRY.search(text) else text.replace("°", "")
    for read_value in (_leading_value, read_closed_form):
        found = read_value(text)
        unit = read_unit(found[1].removeprefix("%")) if found else None
        if found and unit is not None:
            is_percent = found[1].startswith("%")
            return Answer(compact, latex if is_percent else _number_latex(found[0], latex), found[0], unit, is_percent)
    if _is_words(text):
        return Answer(text.casefold().replace(" ", ""), latex, is_words=True)
    if len(compact) == 1 and compact.isalpha():
        return Answer(compact, latex, letter=compact.upper())
    return Answer(compact, latex)


def _plain_text(raw: str) -> str:
    """Unicode to ASCII where it has a meaning in mathematics, LaTeX dressing off, single spaces."""
    text = raw
    if not text.isascii():
        text = _UNICODE_ROOT.sub(lambda m: rf"\sqrt{{{m.group(1) or m.group(2)}}}", text)
        text = unicodedata.normalize("NFKC", text.translate(_UNICODE_TABLE))
        text = "".join(c if c.isascii() else str(unicodedata.decimal(c, c)) for c in text)
    if not text.isdigit():
        for pattern, replacement in _REWRITES:
            text = pattern.sub(replacement, text)
    return text


def _unwrap(text: str) -> str:
    """Strip quotes, emphasis and full stops, and brackets around the whole where they hold no list."""
    for _ in range(6):
        before = text
        text = text.strip(" *\"'`;,。").removesuffix(".").strip()
        if len(text) > 2 and text[0] + text[-1] in ("()", "{}") and "," not in text and _closes_at_end(text):
            text = text[1:-1]
        if text == before:
            break
    return text


def _closes_at_end(text: str) -> bool:
    """Does the bracket that opens the text close at its last character?"""
    depth = 0
    for position, character in enumerate(text):
        depth += (character == text[0]) - (character == text[-1])
        if depth == 0:
            return position == len(text) - 1
    return False


def _split_name(text: str) -> tuple[str, str]:
    """("x", "3") of "x = 3"; ("", "3") of "\\approx 3"."""
    text = _APPROXIMATELY.sub("", text, count=1) if _APPROXIMATELY.match(text) else text
    named = _NAME.fullmatch(text)
    if named is None:
        return "", text
    return named.group(1).replace(" ", ""), _unwrap(named.group(2))


def _leading_value(text: str) -> tuple[Fraction, str] | None:
    """The rational number that a text begins with, and what follows it; None where it begins with none."""
    if _RATIO.fullmatch(text):
        parts = [Fraction(part) for part in re.split(r"[: to]+", text)]
        return (parts[0] / parts[1], "") if len(parts) == 2 and parts[1] else None
    for pattern, value_of in _READERS:
        match = pattern.match(text)
        if match:
            try:
                return value_of(match), text[match.end() :].strip()
            except ZeroDivisionError:
                return None
    return None


def _number(text: str) -> Fraction:
    return Fraction(text.replace(",", "").replace(" ", ""))


def _mixed_value(match: re.Match[str]) -> Fraction:
    sign, whole, *parts = match.groups()
    over, under = (part for part in parts if part is not None)
    value = int(whole) + Fraction(int(over), int(under))
    return -value if sign == "-" else value


def _fraction_value(match: re.Match[str]) -> Fraction:
    value = _number(match.group(2)) / _number(match.group(3))
    return -value if match.group(1) == "-" else value


_READERS = (
    (_TEN_POWER, lambda m: _number(m.group(1)) * Fraction(10) ** int(m.group(2))),
    (_MIXED, _mixed_value),
    (_FRACTION, _fraction_value),
    (_QUOTIENT, lambda m: _number(m.group(1)) / _number(m.group(2))),
    (_PLAIN, lambda m: _number(m.group(1))),
)


def _number_latex(value: Fraction | float, latex: str) -> str:
    """A rational number without its unit, so that algebra cannot misread it; other numbers as they were written."""
    if isinstance(value, float):
        return latex
    return str(value) if value.denominator == 1 else rf"\frac{{{value.numerator}}}{{{value.denominator}}}"


def _is_words(text: str) -> bool:
    """Words and letter sequences ("tea", "BCA"), which algebra would take for products; "AB" is left to it."""
    if not _WORDS.fullmatch(text):
        return False
    if not text.isascii():
        return len(text) > 1
    words = [word for word in re.split(r"[ '\-]+", text) if word]
    if len(words) == 1 and len(text) == 2:
        return text.casefold() in _SHORT_WORDS
    return any(len(word) >= 3 and word.casefold() not in MATHEMATICAL_WORDS for word in words)
