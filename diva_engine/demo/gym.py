"""Questions of the public package reasoning-gym, drawn: their numbers stand in the image alone.

`polygons` (its task simple_geometry): interior angles written at the corners of a drawn polygon, the last one asked.
Levels 1 to 3 are a triangle to a pentagon. `sums` (its task chain_sum): one-digit terms written into a 3 x 3 grid, to
be read row by row. Level n has n + 1 terms.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from PIL import Image, ImageDraw, ImageFont

from diva_engine.demo.questions import Question, Shown
from diva_engine.records import UserError

INK = (0, 0, 0)
PAPER = (245, 245, 245)
SHARPEST, BLUNTEST = 30, 150  # degrees; corners beyond these cannot be drawn legibly
MAX_TRIES = 100_000


class Source(Protocol):
    """How the entries of one task become questions."""

    name: str
    task: str
    settings: Mapping[str, int]
    levels: tuple[int, ...]
    wordings: tuple[str, ...]

    def read(self, metadata: Mapping[str, Any]) -> Drawing | None:
        """What is drawn of an entry; None where it cannot be drawn."""


@dataclass(frozen=True)
class Drawing:
    """An entry of reasoning-gym as an image with its worked solution."""

    level: int
    key: tuple[Any, ...]  # equal for entries that pose the same question
    image: Image.Image
    steps: tuple[str, ...]
    shown: Shown


class Polygons:
    """Angles of a polygon about a circle: such a polygon exists for any angles that sum to (n - 2) * 180 degrees."""

    name = "polygons"
    task = "simple_geometry"
    settings: Mapping[str, int] = {"min_sides": 3, "max_sides": 5, "min_angle": SHARPEST, "max_angle": BLUNTEST}
    levels = (1, 2, 3)
    wordings = (
        "<image>How many degrees has the angle with the question mark?",
        "<image>One angle of the polygon is unknown. Find it, in degrees.",
        "<image>What is the missing angle of this polygon, in degrees?",
    )
    first_step = "the angles sum to {total} ;"
    size = 112  # pixels: 4 x 4 image tokens
    margin = 23  # pixels around the polygon, for the numbers at its corners

    def read(self, metadata: Mapping[str, Any]) -> Drawing | None:
        known = [int(angle) for angle in metadata["known_angles"]]
        total = int(metadata["total_interior_sum"])
        missing = total - sum(known)
        if not SHARPEST <= missing <= BLUNTEST:
            return None
        steps = [self.first_step.format(total=total)]
        rest = total
        for angle in known:
            steps.append(f"{rest} - {angle} = {rest - angle} ;")
            rest -= angle
        labels = [*map(str, known), "?"]
        image = self._render([*known, missing], labels)
        shown: Shown = ((None, None),) * 16  # a number may lie across several tokens
        return Drawing(len(known) - 1, tuple(known), image, tuple(steps), shown)

    def _render(self, angles: list[int], labels: list[str]) -> Image.Image:
        corners = self._fit(_corners_about_a_circle(angles))
        image = Image.new("RGB", (self.size, self.size), PAPER)
        pen = ImageDraw.Draw(image)
        pen.polygon(corners, outline=INK, width=2)
        centre_x = sum(x for x, _ in corners) / len(corners)
        centre_y = sum(y for _, y in corners) / len(corners)
        for (x, y), label in zip(corners, labels, strict=True):
            away = 11 / math.hypot(x - centre_x, y - centre_y)
            place = (x + away * (x - centre_x), y + away * (y - centre_y))
            pen.text(place, label, fill=INK, font=ImageFont.load_default(14), anchor="mm")
        return image

    def _fit(self, corners: list[tuple[float, float]]) -> list[tuple[float, float]]:
        """Scaled and moved so that the larger side fills the image between the margins."""
        left, top = min(x for x, _ in corners), min(y for _, y in corners)
        width, height = max(x for x, _ in corners) - left, max(y for _, y in corners) - top
        scale = (self.size - 2 * self.margin) / max(width, height)
        margin_x = (self.size - scale * width) / 2
        margin_y = (self.size - scale * height) / 2
        return [(margin_x + scale * (x - left), margin_y + scale * (y - top)) for x, y in corners]


class Sums:
    """Sums and differences of one-digit numbers, one digit or sign to an image token."""

    name = "sums"
    task = "chain_sum"
    settings: Mapping[str, int] = {"min_terms": 2, "max_terms": 5, "min_digits": 1, "max_digits": 1}
    levels = (1, 2, 3, 4)
    wordings = (
        "<image>What does the sum in the image come to?",
        "<image>Work out the sum in the image, row by row.",
        "<image>Add and subtract the numbers in the image. Give the result.",
    )
    grid = 3
    cell = 28  # pixels

    def read(self, metadata: Mapping[str, Any]) -> Drawing | None:
        first, *rest = str(metadata["expression"]).split()
        steps = []
        total = int(first)
        for sign, term in zip(rest[::2], rest[1::2], strict=True):
            opening = f"{first} " if not steps else ""
            total += int(term) if sign == "+" else -int(term)
            steps.append(f"{opening}{sign} {term} = {total} ;")
        signs = [first, *rest]
        blank = self.grid**2 - len(signs)
        shown: Shown = (*((None, sign) for sign in signs), *((None, None),) * blank)
        return Drawing(len(steps), tuple(signs), self._render(signs), tuple(steps), shown)

    def _render(self, signs: list[str]) -> Image.Image:
        image = Image.new("RGB", (self.grid * self.cell, self.grid * self.cell), PAPER)
        pen = ImageDraw.Draw(image)
        for place, sign in enumerate(signs):
            row, column = divmod(place, self.grid)
            middle = (self.cell * (column + 0.5), self.cell * (row + 0.5))
            pen.text(middle, sign, fill=INK, font=ImageFont.load_default(22), anchor="mm")
        return image


def draw_questions(source: Source, counts: Mapping[str, int]) -> dict[str, list[Question]]:
    """`counts[split]` questions of each level for every split. No question comes twice, in whichever split."""
    drawings = _drawings(source, sum(counts.values()))
    questions: dict[str, list[Question]] = {}
    for split, count in counts.items():
        in_turn = [drawings[level].pop() for _ in range(count) for level in source.levels]
        questions[split] = [_question(source, split, index, *drawn) for index, drawn in enumerate(in_turn)]
    return questions


def _drawings(source: Source, per_level: int) -> dict[int, list[tuple[Drawing, str]]]:
    """The first `per_level` different drawings of each level, with their answers."""
    found: dict[int, dict[tuple[Any, ...], tuple[Drawing, str]]] = {level: {} for level in source.levels}
    for entry in _entries(source):
        drawing = source.read(entry["metadata"])
        if drawing is not None and len(found[drawing.level]) < per_level:
            found[drawing.level][drawing.key] = (drawing, entry["answer"])
        if all(len(of_level) == per_level for of_level in found.values()):
            break
    return {level: list(of_level.values()) for level, of_level in found.items()}


def _entries(source: Source) -> Iterator[dict[str, Any]]:
    try:
        from reasoning_gym.factory import create_dataset
    except ImportError as error:
        raise UserError("the demo draws questions from reasoning-gym; install it: pip install reasoning-gym") from error
    yield from create_dataset(source.task, size=MAX_TRIES, seed=0, **source.settings)


def _question(source: Source, split: str, index: int, drawing: Drawing, answer: str) -> Question:
    problem, *paraphrases = source.wordings
    return Question(
        id=f"{source.name}-{split}-{index:04d}",
        problem=problem,
        answer=answer,
        image=drawing.image,
        level=drawing.level,
        num_levels=len(source.levels),
        paraphrases=tuple(paraphrases),
        steps=drawing.steps,
        shown=drawing.shown,
    )


def _corners_about_a_circle(angles: list[int]) -> list[tuple[float, float]]:
    """Corners of the polygon with these interior angles (degrees) whose sides all touch the unit circle."""
    corners = []
    direction = math.radians(100)  # any beginning; this one keeps most polygons off a level base line
    for angle, following in zip(angles, [*angles[1:], angles[0]], strict=True):
        distance = 1 / math.sin(math.radians(angle / 2))
        corners.append((distance * math.cos(direction), distance * math.sin(direction)))
        direction += math.radians((90 - angle / 2) + (90 - following / 2))
    return corners
