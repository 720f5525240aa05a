"""One row of a user's table -> Problems. A row that cannot be used raises UnreadableRow with the reason."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from diva_engine.data.chats import IMAGE_MARKER, read_conversation
from diva_engine.data.columns import ColumnMap
from diva_engine.data.llava_cot import is_llava_cot, read_llava_cot, split_steps
from diva_engine.data.tables import UnreadableRow
from diva_engine.records import Problem

_ANSWER_TAGS = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)  # R1-V and its relatives store the solution so
VIDEO_MARKER = "<video>"
_GSM8K_MARK = "####"


class RowReader:
    """Reads rows by a column map. `notes` counts what was left out of rows that are otherwise fine."""

    def __init__(self, columns: ColumnMap, notes: Counter[str]) -> None:
        self._columns = columns
        self._notes = notes

    def read(self, row: Mapping[str, Any], row_id: str, images: Sequence[Any], origin: str) -> list[Problem]:
        """The problems of a row: one, or one a question where a conversation asks several (ids "<row_id>:<number>").

        Args:
            images: the row's image sources in order, or as many placeholders when only the texts are looked at.
            origin: "file:row".
        """
        pairs, extra = self._questions(row)
        extra = {name: row[name] for name in self._columns.unused if name in row} | extra
        problems = []
        for number, (question, answer) in enumerate(pairs):
            steps = read_steps(self._columns.value(row, "steps"))
            if is_llava_cot(answer):
                question, answer, steps = read_llava_cot(question, answer)
            text = place_markers(question, len(images))
            problem = Problem(
                id=row_id if len(pairs) == 1 else f"{row_id}:{number}",
                text=text,
                answer=read_answer(answer),
                images=tuple(images),
                difficulty=self._difficulty(row),
                paraphrases=self._paraphrases(row, text),
                steps=steps,
                text_in_image=read_flag(self._columns.value(row, "text_in_image")),
                origin=origin,
                extra=extra,
            )
            refuse_half_characters(problem)
            problems.append(problem)
        return problems

    def _questions(self, row: Mapping[str, Any]) -> tuple[list[tuple[str, Any]], dict[str, Any]]:
        """Pairs of question and raw answer, and what the chat says beyond them."""
        value = self._columns.value(row, "text")
        answer = None if self._columns.answer_in_chat else self._columns.value(row, "answer")
        if isinstance(value, str):
            return [(_required_text(value, "question"), answer)], {}
        if not isinstance(value, Sequence):
            raise UnreadableRow("the question is empty" if value is None else "the question is no text")
        conversation = read_conversation(value)
        extra = {"system_prompt": conversation.system} if conversation.system else {}
        if self._columns.answer_in_chat:
            return list(conversation.pairs), extra
        if len(conversation.pairs) > 1:
            raise UnreadableRow(f"the chat asks {len(conversation.pairs)} questions, the row has one answer")
        return [(_required_text(conversation.pairs[0][0], "question"), answer)], extra

    def _difficulty(self, row: Mapping[str, Any]) -> float | None:
        value = self._columns.value(row, "difficulty")
        if value is None:
            return None
        try:
            level = float(value)
        except (TypeError, ValueError):
            level = float("nan")
        if 1 <= level <= 9:
            return level
        self._notes["difficulties that are no number in [1, 9] were left out"] += 1
        return None

    def _paraphrases(self, row: Mapping[str, Any], text: str) -> tuple[str, ...]:
        """The row's other wordings, each with its markers; equal ones once."""
        num_markers = text.count(IMAGE_MARKER)
        wordings: dict[str, None] = {}
        for wording in read_texts(self._columns.value(row, "paraphrases"), "the paraphrases"):
            try:
                wordings[place_markers(wording, num_markers)] = None
            except UnreadableRow:
                self._notes[f"paraphrases with another number of {IMAGE_MARKER} markers were left out"] += 1
        wordings.pop(text, None)
        return tuple(wordings)


def refuse_half_characters(problem: Problem) -> None:
    """JSON can say half of a character beyond 16 bits; no tokenizer and no file takes it."""
    texts = {"question": (problem.text,), "answer": (problem.answer,)}
    texts |= {"paraphrases": problem.paraphrases, "steps": problem.steps}
    texts |= {"system message": (str(problem.extra.get("system_prompt", "")),)}
    for what, values in texts.items():
        for value in values:
            try:
                value.encode()
            except UnicodeEncodeError:
                raise UnreadableRow(f"half a character stands in the {what}; write the file again as UTF-8") from None


def place_markers(text: str, num_images: int) -> str:
    """The text with one marker an image: as it is where the counts agree, in front where the text has none."""
    if VIDEO_MARKER in text:
        raise UnreadableRow(f"the question has a {VIDEO_MARKER} marker; only images are read")
    markers = text.count(IMAGE_MARKER)
    if markers == num_images:
        return text
    if markers == 0:
        return IMAGE_MARKER * num_images + text
    raise UnreadableRow(f"the question has {markers} {IMAGE_MARKER} markers, the row {num_images} images")


def read_answer(value: Any) -> str:
    """The answer as text, freed of its wrapping: a list of one, <answer> tags, the "#### " of GSM8K, \\boxed."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if value is None or value != value:  # NaN: how tables of numbers say "none"
        raise UnreadableRow("the answer is empty")
    if isinstance(value, (int, float)):
        return str(value)
    if not isinstance(value, str):
        raise UnreadableRow(f"the answer is {type(value).__name__}, not text or a number")
    tagged = _ANSWER_TAGS.search(value)
    if tagged:
        value = tagged.group(1)
    if _GSM8K_MARK in value:
        value = value.rsplit(_GSM8K_MARK, 1)[1]
    return _required_text(last_boxed(value), "answer").strip()


def last_boxed(text: str) -> str:
    """The content of the last \\boxed{...}, braces matched; the text itself where there is none."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return text
    depth = 0
    for position in range(start + len("\\boxed"), len(text)):
        depth += {"{": 1, "}": -1}.get(text[position], 0)
        if depth == 0:
            return text[start + len("\\boxed{") : position]
    return text


def read_flag(value: Any) -> bool:
    """True for true, 1 and their texts; absent is False."""
    return str(value).strip().lower() in ("true", "1", "1.0", "yes")


def read_steps(value: Any) -> tuple[str, ...]:
    """Reasoning steps: a list, its Python repr, or one text with "Step 1 ... Step 2 ..." or one step a line."""
    if isinstance(value, str) and not _looks_like_list(value):
        return split_steps(value) or tuple(line.strip() for line in value.splitlines() if line.strip())
    return read_texts(value, "the steps")


def read_texts(value: Any, what: str) -> tuple[str, ...]:
    """A list of texts, also as its Python repr (evaluated as a literal only); empty texts are dropped."""
    if value is None:
        return ()
    if isinstance(value, str):
        value = _literal_list(value, what)
    if not isinstance(value, list):
        raise UnreadableRow(f"{what} are {type(value).__name__}, not a list of texts")
    if not all(isinstance(text, str) for text in value if text is not None):
        raise UnreadableRow(f"{what} hold something that is no text")
    return tuple(text for text in value if text and text.strip())


def _literal_list(text: str, what: str) -> Any:
    if not _looks_like_list(text):
        return [text]
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
        raise UnreadableRow(f"{what} look like a Python list but cannot be read as one") from error


def _looks_like_list(text: str) -> bool:
    return text.lstrip().startswith("[") and text.rstrip().endswith("]")


def _required_text(text: str, what: str) -> str:
    if not text.strip():
        raise UnreadableRow(f"the {what} is empty")
    return text
