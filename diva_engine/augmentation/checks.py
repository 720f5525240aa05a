"""Which paraphrases and steps may be used: same numbers, options and answer; no hint that gives the answer away."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from diva_engine.augmentation.answer_leaks import gives_away, tells_answer
from diva_engine.augmentation.prompts import IMAGE_MARKER, restored_markers, tagged
from diva_engine.augmentation.texts import folded, is_negated, numbers_in, split_options, symbols_in
from diva_engine.records import Problem

SameAnswer = Callable[[str, str], bool]  # (found, reference)

MIN_STEPS, MAX_STEPS = 2, 20
MAX_STEP_CHARS = 2000
_OF_THE_PROMPT = ("correct answer", "given answer", "reference answer", "answer was given", "answer is given")


@dataclass(frozen=True)
class Rejected:
    """A text that may not be used, and why. The reasons are few and fixed, so that they can be counted."""

    reason: str
    text: str


@dataclass(frozen=True)
class Judged:
    """What a reply is worth."""

    accepted: tuple[str, ...] = ()
    rejected: tuple[Rejected, ...] = ()


def judge_paraphrases(problem: Problem, reply: str, is_cut_off: bool, known: Sequence[str] = ()) -> Judged:
    """The reply's usable wordings, each with its `<image>` markers.

    Args:
        is_cut_off: the reply ended at its token limit.
        known: wordings that earlier replies gave.
    """
    wordings = tagged(reply, "paraphrase")
    if not wordings:
        return Judged(rejected=(Rejected("cut off at --max-tokens" if is_cut_off else "no <paraphrase> tags", reply),))
    accepted: list[str] = []
    rejected: list[Rejected] = []
    taken = {folded(text) for text in known}
    for wording in wordings:
        text = restored_markers(wording, problem.text)
        reason = "image markers changed" if text is None else fault_of_paraphrase(problem, text)
        if text is None or reason:
            rejected.append(Rejected(reason, wording))
        elif folded(text) in taken:
            rejected.append(Rejected("same as another paraphrase", wording))
        else:
            taken.add(folded(text))
            accepted.append(text)
    return Judged(tuple(accepted), tuple(rejected))


def fault_of_paraphrase(problem: Problem, text: str) -> str:
    """Why a wording may not stand for the question; "" where nothing speaks against it."""
    question, wording = split_options(problem.text), split_options(text)
    checks = (
        ("empty", not text.replace(IMAGE_MARKER, "").strip()),
        ("tags inside", "<paraphrase" in text or "</" in text),
        ("same as the question", folded(text) == folded(problem.text)),
        ("too long", len(text) > 3 * len(problem.text) + 200),
        ("options changed", _folded_values(question.texts) != _folded_values(wording.texts)),
        ("numbers changed", numbers_in(text) != numbers_in(problem.text)),
        ("symbols changed", symbols_in(wording.stem) != symbols_in(question.stem)),
        ("a negation came or went", is_negated(wording.stem) != is_negated(question.stem)),
        ("gives the answer away", tells_answer(wording.stem, problem.answer, question)),
    )
    return next((reason for reason, is_true in checks if is_true), "")


def judge_steps(problem: Problem, reply: str, is_cut_off: bool, same_answer: SameAnswer) -> Judged:
    """The reply's steps where all of them can be used; one that cannot spoils the solution."""
    steps, answers = tagged(reply, "step"), tagged(reply, "answer")
    if is_cut_off:
        reason = "cut off at --max-tokens"
    elif not steps or not answers:
        reason = "no <step> and <answer> tags"
    else:
        reason = fault_of_steps(problem, steps, answers[-1], same_answer)
    return Judged(rejected=(Rejected(reason, reply),)) if reason else Judged(accepted=tuple(steps))


def fault_of_steps(problem: Problem, steps: Sequence[str], answer: str, same_answer: SameAnswer) -> str:
    """Why a solution may not be used for hints; "" where nothing speaks against it.

    The last step concludes and is never shown, so it alone may name the answer.
    """
    question = split_options(problem.text)
    text = folded(" ".join(steps))
    checks = (
        ("an empty step", not all(steps)),
        ("fewer than 2 steps", len(steps) < MIN_STEPS),
        ("more than 20 steps", len(steps) > MAX_STEPS),
        ("a step is too long", max(map(len, steps)) > MAX_STEP_CHARS),
        ("tags or image markers inside", any("<step" in step or IMAGE_MARKER in step for step in steps)),
        ("another answer", not same_answer(answer, problem.answer)),
        ("speaks of the answer it was given", any(phrase in text for phrase in _OF_THE_PROMPT)),
        ("a hint gives the answer away", any(gives_away(step, problem.answer, question) for step in steps[:-1])),
    )
    return next((reason for reason, is_true in checks if is_true), "")


def _folded_values(texts: dict[str, str]) -> dict[str, str]:
    return {letter: folded(text) for letter, text in texts.items()}
