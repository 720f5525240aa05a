"""The words of the demo's model: every word of its questions, answers and chat template, each one token."""

from __future__ import annotations

import re
from collections.abc import Iterator

from diva_engine.demo import gym, tiles

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
UNKNOWN = "<unk>"

# The marks of an answer, whole numbers with their sign, words, and any other character alone.
WORD_PATTERN = r"\\boxed\{|</?think>|-?\d+|\w+|[^\w\s]"

# Partial sums of the sums reach down to -36; the five angles of a pentagon sum to 540.
NUMBERS = range(-36, 541)

# Sentences that the trainer adds to a question, beside those of the chat template.
ROLES = "system user assistant"
ANSWER_MARKS = "<think> </think> \\boxed{ } ; = + -"
LISTING = "<image>List the tiles: {colours}."
HINT = "\nHint: the first steps are: {steps}\nReason from the start."
ROTATED = "\nThe image has been rotated."
IN_IMAGE = "The question stands in the image."


def vocabulary() -> list[str]:
    """All tokens, the position being the token id."""
    words = dict.fromkeys([*SPECIAL_TOKENS, UNKNOWN])
    for text in _texts():
        spoken = re.sub(r"<image>|\{\w+\}", " ", text)
        words.update(dict.fromkeys(re.findall(WORD_PATTERN, spoken.lower())))
    words.update(dict.fromkeys(str(number) for number in NUMBERS))
    return list(words)


def _texts() -> Iterator[str]:
    yield from (ROLES, ANSWER_MARKS, LISTING, HINT, ROTATED, IN_IMAGE)
    yield from tiles.WORDINGS
    yield from tiles.COLOURS
    yield from gym.Polygons.wordings
    yield gym.Polygons.first_step
    yield from gym.Sums.wordings
