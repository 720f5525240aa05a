"""Finding the final answer in a response. Every search is linear in the length of the response."""

from __future__ import annotations

import re
from typing import Literal

AnswerTag = Literal["boxed", "answer", "any"]

TAIL_CHARS = 1000  # an answer stated in plain words is looked for at the end only
SHORT_LINE_CHARS = 60  # a last line up to this long may be the answer itself

_BOX = re.compile(r"\\(?:boxed|fbox)\s*(?=\S)")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_BARE_BOX_CONTENT = re.compile(r"[^\s$]+")
_STATED = re.compile(r"(?i)\banswer(?:\s+is\s*:?|\s*[:=])\s*([^\n]{1,200})")
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?(?:/\d+)?%?")


def extract_answer(response: str, tag: AnswerTag = "boxed") -> str | None:
    """The final answer of a response, or None where it states none.

    `boxed`: the content of the last `\\boxed{...}`, braces nested to any depth; without a box, the last `<answer>`.
    `answer`: the content of the last `<answer>...</answer>`; a box inside it is opened.
    `any`: as `boxed`, else "answer is ...", else the last number near the end, else a short last line.
    A last box or tag that is never closed (a truncated response) is no answer.
    """
    if tag == "answer":
        tagged = last_tagged(response)
        return None if tagged is None else (last_boxed(tagged) or tagged)
    if _BOX.search(response):
        return last_boxed(response)
    tagged = last_tagged(response)
    if tagged is None and tag == "any":
        return stated_answer(response)
    return tagged


def last_boxed(text: str) -> str | None:
    """Content of the last `\\boxed{...}` or `\\boxed x`; None where there is none or it is not closed."""
    start = None
    for match in _BOX.finditer(text):
        start = match.end()
    if start is None:
        return None
    if text[start] != "{":
        bare = _BARE_BOX_CONTENT.match(text, start)
        return bare.group() if bare else None
    depth = 0
    for brace in _BRACE.finditer(text, start):
        if brace.group() == "{":
            depth += 1
        elif brace.group() == "}":
            depth -= 1
        if depth == 0:
            return text[start + 1 : brace.start()].strip()
    return None


def last_tagged(text: str) -> str | None:
    """Content of the last `<answer>...</answer>`; None where there is none or it is not closed."""
    start = text.rfind("<answer>")
    end = text.find("</answer>", start) if start >= 0 else -1
    return text[start + len("<answer>") : end].strip() if end >= 0 else None


def stated_answer(text: str) -> str | None:
    """The answer of a response without box or tag, from its last 1,000 characters."""
    tail = text[-TAIL_CHARS:].strip()
    stated = _STATED.findall(tail)
    if stated:
        return str(stated[-1]).strip()
    numbers = _NUMBER.findall(tail)
    if numbers:
        return str(numbers[-1]).rstrip(",")
    last_line = tail.rsplit("\n", 1)[-1].strip()
    return last_line if 0 < len(last_line) <= SHORT_LINE_CHARS else None
