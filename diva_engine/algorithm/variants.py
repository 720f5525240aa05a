"""Which variants of a question are posed: DIVA-GRPO's three tiers (arXiv 2603.01106; docs/algorithms.md).

The question's level decides how far easier or harder a variant should be (its shift); the shift decides the kind:
hints make it easier, perturbed images harder, a paraphrase leaves it as it is. Only decisions are made here; the data
room draws pixels.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from diva_engine.config import HintConfig, VariantsConfig
from diva_engine.records import ImageOperation, Problem, Variant, VariantKind

MEAN_SHIFT = {1: 6, 2: 5, 3: 4, 4: 3, 5: 2, 6: 1, 7: -1, 8: -3, 9: -5}  # by level: a solved question is made harder
SHIFT_STD = 1.0
LARGEST_SHIFT = 8
NUM_HINT_STEPS = {1: 1, 2: 1, 3: 2, 4: 2, 5: 3, 6: 3}  # by -shift; beyond 6 all steps are shown, never the answer
PERTURBATIONS = {
    1: (1, 0.30),
    2: (1, 0.45),
    3: (2, 0.30),
    4: (2, 0.45),
    5: (3, 0.30),
    6: (4, 0.45),
}  # (operations, strength)
ROTATED = "The image has been rotated."
QUESTION_IS_IN_IMAGE = "The question stands in the image."
IMAGE_MARKER = "<image>"


def always_drawable(text: str) -> bool:
    """For those who draw no text, or have a font of every letter."""
    return True


@dataclass(frozen=True)
class VariantSettings:
    """What the draw of variants reads from the run's settings."""

    variants: VariantsConfig
    hint: HintConfig
    is_drawable: Callable[[str], bool] = always_drawable  # whether the font has every letter of a question


def original(problem: Problem, difficulty: float) -> Variant:
    """Variant 0: the question as it stands in the record."""
    return Variant(problem, index=0, kind="original", text=problem.text, difficulty=difficulty)


def draw_variants(problem: Problem, difficulty: float, settings: VariantSettings, draw: random.Random) -> list[Variant]:
    """The question's variants for this step, numbered from 1, at the levels that its difficulty asks for."""
    level = round(min(max(difficulty, 1), 9))
    return [
        pose_variant(problem, i + 1, difficulty, draw_shift(level, draw), settings, draw)
        for i in range(settings.variants.num)
    ]


def hinted(problem: Problem, difficulty: float, num_steps: int, hint: HintConfig, index: int = 1) -> Variant:
    """The question with its first `num_steps` solution steps, told in it or beginning its answer (`hint.inject`)."""
    pose = _with_hint(problem, problem.steps[:num_steps], hint)
    return Variant(
        problem=problem,
        index=index,
        kind="hint",
        text=pose.text,
        difficulty=difficulty,
        answer_prefix=pose.answer_prefix,
        num_hint_steps=num_steps,
    )


def draw_perturbed(
    problem: Problem, difficulty: float, settings: VariantSettings, draw: random.Random, index: int = 1
) -> Variant:
    """A harder variant of a question at its level; `fallback` says that the record has nothing to perturb."""
    shift = max(1, draw_shift(round(min(max(difficulty, 1), 9)), draw))
    return pose_variant(problem, index, difficulty, shift, settings, draw)


def draw_shift(level: int, draw: random.Random) -> int:
    """How much harder (or, negative, easier) a variant of a question at `level` shall be: a whole number in [-8, 8]."""
    shift = round(draw.gauss(MEAN_SHIFT[level], SHIFT_STD))
    return min(max(shift, -LARGEST_SHIFT), LARGEST_SHIFT)


def usable_steps(problem: Problem) -> tuple[str, ...]:
    """The steps that may be shown: all but the last, which concludes; a single one if it does not name the answer.

    The last step is held back even where the answer's own words are not in it: 1/2 may stand there as "a half".
    """
    steps = problem.steps
    if len(steps) > 1 or (steps and _mentions(steps[0], problem.answer)):
        return steps[:-1]
    return steps


def hint_text(steps: Sequence[str], hint: HintConfig) -> str:
    """The forced beginning of an answer that has these steps behind it."""
    return hint.answer_template.format(steps=hint.separator.join(steps))


def pose_variant(
    problem: Problem, index: int, difficulty: float, shift: int, settings: VariantSettings, draw: random.Random
) -> Variant:
    """The question made `shift` harder, or easier where it is negative, as far as the record has what that needs."""
    wanted = _kind_of(shift)
    kind = _nearest_possible(wanted, problem, settings)
    if kind == "hint":
        allowed = usable_steps(problem)
        pose = _with_hint(problem, allowed[: NUM_HINT_STEPS.get(-shift, len(allowed))], settings.hint)
    elif kind == "perturbation":
        pose = _perturbed(problem, shift, settings.variants, draw)
    elif kind == "text_in_image":
        pose = _Pose(text=f"{IMAGE_MARKER * max(1, problem.text.count(IMAGE_MARKER))}\n{QUESTION_IS_IN_IMAGE}")
    elif kind == "paraphrase":
        pose = _Pose(text=draw.choice(problem.paraphrases))
    else:
        pose = _Pose(text=problem.text)
    return Variant(
        problem=problem,
        index=index,
        kind=kind,
        text=pose.text,
        difficulty=difficulty + (shift if kind == wanted else 0),  # a fallback is no harder or easier than the question
        shift=shift if kind == wanted else 0,
        operations=pose.operations,
        answer_prefix=pose.answer_prefix,
        num_hint_steps=pose.num_hint_steps,
        fallback=kind != wanted,
    )


@dataclass(frozen=True)
class _Pose:
    """How a variant differs from its question."""

    text: str
    operations: tuple[ImageOperation, ...] = ()
    answer_prefix: str = ""
    num_hint_steps: int = 0


def _kind_of(shift: int) -> VariantKind:
    if shift < 0:
        return "hint"
    if shift == 0:
        return "paraphrase"
    return "perturbation" if shift <= max(PERTURBATIONS) else "text_in_image"


def _nearest_possible(kind: VariantKind, problem: Problem, settings: VariantSettings) -> VariantKind:
    """The wanted kind, or the nearest one for which the record has what it needs."""
    if kind == "hint" and usable_steps(problem):
        return kind
    if kind == "perturbation" and problem.images:
        return kind
    if kind == "text_in_image" and problem.images:
        is_drawn = not problem.text_in_image and settings.is_drawable(problem.text)
        return kind if is_drawn else "perturbation"
    return "paraphrase" if problem.paraphrases else "original"


def _with_hint(problem: Problem, steps: Sequence[str], hint: HintConfig) -> _Pose:
    if hint.inject == "answer":
        return _Pose(text=problem.text, answer_prefix=hint_text(steps, hint), num_hint_steps=len(steps))
    text = hint.question_template.format(question=problem.text, steps=hint.separator.join(steps))
    return _Pose(text=text, num_hint_steps=len(steps))


def _perturbed(problem: Problem, shift: int, settings: VariantsConfig, draw: random.Random) -> _Pose:
    num_operations, strength = PERTURBATIONS[min(shift, max(PERTURBATIONS))]
    offered = settings.operations
    names = ["rotate"] if problem.text_in_image else draw.sample(offered, min(num_operations, len(offered)))
    operations = tuple(_operation(name, strength, settings, draw) for name in names)
    rephrase = problem.paraphrases and draw.random() < 0.2 + 0.07 * strength
    text = draw.choice(problem.paraphrases) if rephrase else problem.text
    return _Pose(text=f"{text}\n{ROTATED}" if "rotate" in names else text, operations=operations)


def _operation(name: str, strength: float, settings: VariantsConfig, draw: random.Random) -> ImageOperation:
    if name != "rotate":
        return ImageOperation(name, strength)  # type: ignore[arg-type]
    largest = settings.rotation_degrees_per_strength * strength
    return ImageOperation("rotate", draw.choice((-1, 1)) * largest * draw.uniform(0.5, 1.0))


def _mentions(text: str, answer: str) -> bool:
    """Whether `answer` stands in `text` as a word of its own (5 does not stand in 15 or 5.2)."""
    return bool(answer) and re.search(rf"(?<![\w.]){re.escape(answer)}(?!\w|\.\d)", text) is not None
