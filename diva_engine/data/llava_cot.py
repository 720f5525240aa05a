"""LLaVA-CoT replies (<SUMMARY>, <REASONING>, <CONCLUSION>) -> question, answer and steps, by Hint-GRPO's rules."""

from __future__ import annotations

import re

from diva_engine.data.tables import UnreadableRow

_STEP = re.compile(r"Step\s*\d+")
_LETTER = re.compile(r"(?<![A-Za-z])[A-D](?![A-Za-z])")  # a capital that stands alone, not the A of a word
_OPTION = re.compile(r"(?<![A-Za-z])\(?([A-D])[.:)]\s*(.*?)\s*(?=(?<![A-Za-z])\(?[A-D][.:)]|$)", re.DOTALL)
_OPTIONS_HEADING = re.compile(r"\s*(?:Choices|Options|Answer choices)\s*:?\s*$", re.IGNORECASE)
_CHECKABLE = re.compile(r"\d|\\[a-zA-Z]+|\$")  # a number or LaTeX


def is_llava_cot(reply: object) -> bool:
    return isinstance(reply, str) and "<CONCLUSION>" in reply


def read_llava_cot(question: str, reply: str) -> tuple[str, str, tuple[str, ...]]:
    """Question without options, answer, steps.

    A conclusion that names one option becomes that option's text, and the options are cut from the question, so that
    a guess among four letters earns nothing.

    Raises:
        UnreadableRow: no conclusion, or one without a number or formula that could be checked.
    """
    answer = _section(reply, "CONCLUSION")
    letters = _LETTER.findall(answer)
    if len(letters) == 1:
        question, option = _take_option(question, letters[0])
        answer = option or answer
    if not _CHECKABLE.search(answer):
        raise UnreadableRow("the conclusion holds no number or formula to check")
    return question, answer, split_steps(_section(reply, "REASONING"))


def split_steps(reasoning: str) -> tuple[str, ...]:
    """The texts after "Step 1", "Step 2", ...; what stands before the first is dropped."""
    steps = (part.strip(" :\n") for part in _STEP.split(reasoning)[1:])
    return tuple(step for step in steps if step)


def _section(reply: str, tag: str) -> str:
    start = reply.find(f"<{tag}>")
    if start < 0:
        return ""
    end = reply.find(f"</{tag}>", start)
    return reply[start + len(tag) + 2 : end if end >= 0 else len(reply)].strip()


def _take_option(question: str, letter: str) -> tuple[str, str]:
    """The question without its options, and the text of option `letter`; unchanged and "" where there is none."""
    options = list(_OPTION.finditer(question))
    letters = "".join(match.group(1) for match in options)
    first = letters.rfind("AB")  # earlier ones are names of the question: "the angle at A."
    options = options[first:]
    texts = {match.group(1): match.group(2) for match in options}
    if first < 0 or not texts.get(letter):
        return question, ""
    stem = _OPTIONS_HEADING.sub("", question[: options[0].start()].rstrip())
    return stem, texts[letter]
