"""What the server is asked, and how its replies are read.

Replies are tagged text, not JSON: in JSON every backslash of a formula has to be doubled, and "\\frac" that was not
becomes a form feed and "rac" without any error.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal

from diva_engine.records import Problem

Kind = Literal["paraphrases", "steps"]
Message = dict[str, Any]

IMAGE_MARKER = "<image>"
VERSION = 1  # of the wordings below; a journal of another version is not gone on with

PARAPHRASE_TASK = """Write {count} other wordings of the question below, for a training set.
- Ask for exactly the same thing: the correct answer must stay the same.
- Keep every number, unit, formula, name and symbol as it is written.
- Keep the answer options word for word and in their order, where there are any.
- Keep every mark such as [image 1], once each and in their order.
- Change the structure and the words of the sentences, not a single word only.
- Do not answer the question and do not help with it.
Put each wording between <paraphrase> and </paraphrase>. Write nothing else.

Question:
{question}"""

STEPS_TASK = """Write a worked solution of the question below, for a training set. The correct answer is given.
- Write 3 to 8 steps of one or two sentences, each building on the ones before, from what the question and its images \
show.
- The steps before the last are shown to students as hints. They must stop short of the answer: no value equal to it, \
and no option named.
- The last step draws the conclusion.
- Never say that the answer was given to you.
- No headings and no numbering.
Put each step between <step> and </step>, then the final answer alone between <answer> and </answer>. Write nothing \
else.

Question:
{question}

Correct answer: {answer}"""

_THOUGHTS = re.compile(r".*</think(?:ing)?>", re.DOTALL)
_NUMBERED_MARKER = re.compile(r"\[image (\d+)\]")
_LEADING_MARKERS = re.compile(rf"(?:{re.escape(IMAGE_MARKER)}\s*)*")


def messages_for(kind: Kind, problem: Problem, images: Sequence[str], count: int) -> list[Message]:
    """The chat that asks for `count` paraphrases, or for the steps.

    Args:
        images: the problem's images in order, as URIs that the server can read.
    """
    question = numbered_markers(problem.text)
    if kind == "paraphrases":
        task = PARAPHRASE_TASK.format(count=count, question=question)
    else:
        task = STEPS_TASK.format(question=question, answer=problem.answer)
    if not images:
        return [{"role": "user", "content": task}]
    parts: list[dict[str, Any]] = []
    for number, uri in enumerate(images, start=1):
        parts.append({"type": "text", "text": f"[image {number}]"})
        parts.append({"type": "image_url", "image_url": {"url": uri}})
    return [{"role": "user", "content": [*parts, {"type": "text", "text": task}]}]


def numbered_markers(text: str) -> str:
    """Every `<image>` as [image 1], [image 2], ...: servers take the literal marker for a place of their own."""
    parts = text.split(IMAGE_MARKER)
    return parts[0] + "".join(f"[image {number}]{part}" for number, part in enumerate(parts[1:], start=1))


def restored_markers(wording: str, question: str) -> str | None:
    """A wording with `<image>` in place of its numbered marks; None where they are not the question's, in order.

    A wording without any gets them in front, if that is where the question has them.
    """
    num_images = question.count(IMAGE_MARKER)
    found = [int(number) for number in _NUMBERED_MARKER.findall(wording)]
    if IMAGE_MARKER in wording:
        return None
    if found == list(range(1, num_images + 1)):
        return _NUMBERED_MARKER.sub(IMAGE_MARKER, wording)
    leading = _LEADING_MARKERS.match(question)
    if not found and leading and leading.group().count(IMAGE_MARKER) == num_images:
        return leading.group() + wording
    return None


def tagged(reply: str, tag: str) -> list[str]:
    """The texts between `<tag>` and `</tag>`, behind what a reasoning model thought aloud."""
    spoken = _THOUGHTS.sub("", reply, count=1)
    return [text.strip() for text in re.findall(rf"<{tag}>(.*?)</{tag}>", spoken, re.DOTALL)]
