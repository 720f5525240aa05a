"""Whether a text tells a question's answer: as a number, an option, a phrase or a formula."""

from __future__ import annotations

import re
import unicodedata
from decimal import Decimal

from diva_engine.augmentation.texts import Options, folded, numbers_in

# A small whole number stands in most steps ("divide by 2"): it counts as the answer only where it is a result.
LARGEST_COMMON = 10
_RESULT = (
    r"(?:[=≈:]|\b(?:is|are|be|equals?|gives?|gets?|yields?|makes?|becomes?|obtains?|leaves?|total(?:s|ing)?)\b)"
    r"[\s$\\({]*(?:exactly |only |just )?"
)
_CONCLUDES = re.compile(r"\\boxed|\bfinal answer\b|\banswer\s*(?:is|:|=)|\b(?:correct|right) (?:option|choice)\b", re.I)
_ONE_NUMBER = re.compile(
    r"(?:[A-Za-z]{1,2}\s*=\s*)?[$€£]?\s*[+-]?(\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)\s*[^\d+*/^\\=(){}:,]*"
)
_DEGREES = re.compile(r"\^?\s*\{?\s*\\circ\s*\}?")
_TEXT_COMMAND = re.compile(r"\\(?:text|mathrm|mbox)\s*\{([^{}]*)\}")
_LETTER = re.compile(r"[(\[]?([A-J])[)\].:]?")
_LETTER_AND_TEXT = re.compile(r"[(\[]?([A-J])[)\].:]\s+(\S.*)")
_BARE_WORDS = frozenset({"yes", "no", "true", "false", "not"})
_DRESSING = re.compile(r"\\(?:left|right|[,!:; ])|[\s${}]")


def gives_away(step: str, answer: str, question: Options) -> bool:
    """Whether a step that is shown as a hint tells the answer, or says that it does."""
    return bool(_CONCLUDES.search(step)) or tells_answer(step, answer, question)


def tells_answer(text: str, answer: str, question: Options) -> bool:
    """Whether `text` has the answer where the question's stem has it not."""
    letter, wording = _read_choice(answer, question)
    if letter and _names_option(text, letter):
        return True
    return bool(wording) and _tells_value(text, wording, question.stem)


def _read_choice(answer: str, question: Options) -> tuple[str, str]:
    """An answer's option letter ("" where it is none) and what it says in words."""
    stripped = answer.strip()
    labelled = _LETTER_AND_TEXT.fullmatch(stripped)
    if labelled:
        return labelled.group(1), labelled.group(2)
    letter = _LETTER.fullmatch(stripped)
    if letter is None:
        return "", stripped
    return letter.group(1), question.texts.get(letter.group(1), "")


def _names_option(text: str, letter: str) -> bool:
    named = rf"(?i:\b(?:answer|options?|choices?|choose|select|pick)\b)[^.\n]{{0,12}}?\(?\b{letter}\b|\({letter}\)"
    is_said = rf"\b{letter}\b\)? (?:is|must be) (?:the )?(?:correct|right|true)"
    return re.search(named, text) is not None or re.search(is_said, text) is not None


def _tells_value(text: str, answer: str, stem: str) -> bool:
    number = _ONE_NUMBER.fullmatch(_without_units_in_latex(answer))
    if number:
        return _tells_number(text, Decimal(number.group(1).replace(",", "")).normalize(), stem)
    words = folded(answer)
    if words in _BARE_WORDS:
        return re.search(rf"{_RESULT}{words}(?:[.,;!]|$)", folded(text)) is not None
    if re.search(r"[^\W\d_]{2}", words) and "\\" not in words:
        return _has_words(folded(text), words) and not _has_words(folded(stem), words)
    formula = _compact(answer)
    return len(formula) > 1 and _has_formula(_compact(text), formula) and not _has_formula(_compact(stem), formula)


def _tells_number(text: str, value: Decimal, stem: str) -> bool:
    if value in numbers_in(stem):
        return False  # a given of the question
    if value not in numbers_in(text):
        return False
    is_common = value == value.to_integral_value() and value <= LARGEST_COMMON
    if not is_common:
        return True
    return re.search(rf"{_RESULT}[-−]?{int(value)}(?!\d|[.,]\d|\s*[-+*/×·^])", text, re.IGNORECASE) is not None


def _without_units_in_latex(answer: str) -> str:
    """$60^\\circ$ as 60°, 5\\text{ cm} as 5 cm."""
    plain = unicodedata.normalize("NFKC", answer).replace("\\%", "%").strip(" $")
    return _TEXT_COMMAND.sub(r"\1", _DEGREES.sub("°", plain)).strip()


def _has_words(text: str, words: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(words)}(?!\w)", text) is not None


def _has_formula(text: str, formula: str) -> bool:
    return re.search(rf"(?<![\d.]){re.escape(formula)}(?!\d)", text) is not None


def _compact(text: str) -> str:
    """A formula without spaces and LaTeX dressing; braces fall, so that \\frac{1}{2} and \\frac12 are one."""
    plain = unicodedata.normalize("NFC", text).replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac")
    return _DRESSING.sub("", plain).rstrip(".")
