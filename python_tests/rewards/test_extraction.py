"""Which part of a response is its answer."""

from __future__ import annotations

import time

import pytest

from diva_engine.rewards.extraction import AnswerTag, extract_answer

CASES: dict[str, tuple[AnswerTag, str, str | None]] = {
    "a box": ("boxed", r"so \boxed{12}.", "12"),
    "nested braces": ("boxed", r"\boxed{\frac{1}{\sqrt{2}}}", r"\frac{1}{\sqrt{2}}"),
    "escaped braces do not nest": ("boxed", r"\boxed{\{1,2\}}", r"\{1,2\}"),
    "an unbalanced escaped brace": ("boxed", r"\boxed{[1, 2\}}", r"[1, 2\}"),
    "box in a box": ("boxed", r"\boxed{\boxed{5}}", "5"),
    "the last box counts": ("boxed", r"\boxed{8} no, \boxed{9}", "9"),
    "box after the thought": ("boxed", r"<think>\boxed{1}</think> \boxed{2}", "2"),
    "space before the brace": ("boxed", r"\boxed {7}", "7"),
    "no brace": ("boxed", r"it is \boxed 7 here", "7"),
    "fbox": ("boxed", r"\fbox{7}", "7"),
    "inside dollars": ("boxed", r"$\boxed{7}$", "7"),
    "empty box": ("boxed", r"\boxed{}", ""),
    "box cut off": ("boxed", r"\boxed{8} and \boxed{9", None),
    "nothing after the box": ("boxed", r"\boxed", None),
    "no box": ("boxed", "it is 12", None),
    "no box, but a tag": ("boxed", "<answer> 12 </answer>", "12"),
    "tag": ("answer", "<think>1</think><answer>12</answer>", "12"),
    "last tag": ("answer", "<answer>1</answer><answer>2</answer>", "2"),
    "box inside the tag": ("answer", r"<answer>so \boxed{3}</answer>", "3"),
    "tag cut off": ("answer", "<answer>12", None),
    "box only, tag wanted": ("answer", r"\boxed{12}", None),
    "any: box first": ("any", r"answer is 3, \boxed{4}", "4"),
    "any: stated": ("any", "The answer is (B).", "(B)."),
    "any: stated with a colon": ("any", "Final answer: 12 cm\n", "12 cm"),
    "any: last number": ("any", "I think it's 12.", "12"),
    "any: last number of many": ("any", "3 and 4 make 1,234", "1,234"),
    "any: fraction": ("any", "it must be 3/4", "3/4"),
    "any: short last line": ("any", "Let me see.\nyes", "yes"),
    "any: nothing": ("any", "   ", None),
}


@pytest.mark.parametrize(("tag", "response", "answer"), CASES.values(), ids=CASES)
def test_extraction(tag: AnswerTag, response: str, answer: str | None) -> None:
    assert extract_answer(response, tag) == answer


@pytest.mark.parametrize("piece", [r"\boxed{", "<answer>", "{", "\\", " ", "answer is ", "1,", r"\boxed ", "</answer>"])
def test_megabytes_of_anything_take_no_time(piece: str) -> None:
    text = piece * (2_000_000 // len(piece))
    start = time.process_time()
    for tag in ("boxed", "answer", "any"):
        extract_answer(text, tag)  # type: ignore[arg-type]
        extract_answer(rf"\boxed{{{text}", tag)  # type: ignore[arg-type]
    assert time.process_time() - start < 5.0
