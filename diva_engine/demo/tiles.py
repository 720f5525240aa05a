"""Coloured-tile sums: a graded visual task whose numbers stand in the image alone.

The image shows nine tiles in a 3 x 3 grid, one a colour, each with one to nine dots. A question of level n names a
start number and n colours: "What is 13 + purple + green modulo 20?". To answer it one must find each tile, count its
dots and add. The answer is a number below `MODULUS`, so that no single number is a good guess.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, replace

from PIL import Image, ImageDraw

from diva_engine.demo.questions import Question, Shown

MODULUS = 20
MAX_DOTS = 9
LEVELS = (1, 2, 3, 4, 5, 6)
# Above the levels: six tiles and a last term that no picture shows, so that it must be found by trying.
UNKNOWN_LEVEL = 7
UNKNOWN = 3
GRID = 3
CELL = 28  # pixels: two patches of 14, merged into one image token, so that one tile is one token
SIZE = GRID * CELL

COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 170, 60),
    "blue": (50, 80, 230),
    "yellow": (235, 205, 40),
    "purple": (150, 60, 180),
    "orange": (245, 135, 30),
    "cyan": (60, 200, 220),
    "gray": (130, 130, 130),
    "pink": (245, 150, 190),
}

# Places of the dots on a tile as (row, column) of a 3 x 3 raster, by number of dots.
DOTS = {
    1: ((1, 1),),
    2: ((0, 0), (2, 2)),
    3: ((0, 0), (1, 1), (2, 2)),
    4: ((0, 0), (0, 2), (2, 0), (2, 2)),
    5: ((0, 0), (0, 2), (1, 1), (2, 0), (2, 2)),
    6: ((0, 0), (0, 1), (0, 2), (2, 0), (2, 1), (2, 2)),
    7: ((0, 0), (0, 1), (0, 2), (1, 1), (2, 0), (2, 1), (2, 2)),
    8: ((0, 0), (0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1), (2, 2)),
    9: tuple((row, column) for row in range(3) for column in range(3)),
}

# The first wording is the question itself, the others are its paraphrases.
WORDINGS = (
    "<image>What is {sum} modulo 20?",
    "<image>Add the tiles: {sum}. Give the total modulo 20.",
    "<image>Find the total of {sum}, modulo 20.",
    "<image>{sum} = ? Count modulo 20.",
)


@dataclass(frozen=True)
class Tile:
    """One tile of the image."""

    cell: int  # 0..8, row by row
    colour: str
    dots: int
    jitter: tuple[int, int]  # pixels right and down


@dataclass(frozen=True)
class TileSum:
    """One image with one question about it."""

    start: int
    asked: tuple[Tile, ...]  # in the order in which they are added; as many as the level
    tiles: tuple[Tile, ...]
    background: int  # grey value
    unknown: int = 0  # what the term "unknown" adds at the end; 0: the question has no such term

    @property
    def level(self) -> int:
        return len(self.asked) + (self.unknown > 0)


def draw_tile_sum(level: int, rng: random.Random) -> TileSum:
    """A random question of that level, with its image's contents."""
    if level == UNKNOWN_LEVEL:
        return replace(draw_tile_sum(level - 1, rng), unknown=UNKNOWN)
    cells = rng.sample(range(GRID * GRID), GRID * GRID)
    tiles = tuple(
        Tile(cell, colour, rng.randint(1, MAX_DOTS), (rng.randint(-2, 2), rng.randint(-2, 2)))
        for cell, colour in zip(cells, COLOURS, strict=True)
    )
    asked = tuple(rng.sample(tiles, level))
    return TileSum(rng.randrange(MODULUS), asked, tiles, rng.randint(225, 255))


def render(question: TileSum) -> Image.Image:
    """The image, SIZE x SIZE RGB."""
    image = Image.new("RGB", (SIZE, SIZE), (question.background,) * 3)
    pen = ImageDraw.Draw(image)
    for tile in question.tiles:
        row, column = divmod(tile.cell, GRID)
        left = column * CELL + 3 + tile.jitter[0]
        top = row * CELL + 3 + tile.jitter[1]
        pen.rectangle([left, top, left + 21, top + 21], fill=COLOURS[tile.colour], outline=(0, 0, 0))
        for dot_row, dot_column in DOTS[tile.dots]:
            x, y = left + 3 + 6 * dot_column, top + 3 + 6 * dot_row
            pen.rectangle([x, y, x + 3, y + 3], fill=(0, 0, 0))
    return image


def wordings(question: TileSum) -> list[str]:
    """The question's text in every wording. None tells what a tile shows."""
    terms = " + ".join([str(question.start), *(tile.colour for tile in question.asked)])
    terms += " + unknown" if question.unknown else ""
    return [wording.format(sum=terms) for wording in WORDINGS]


def solve(question: TileSum) -> list[str]:
    """The worked steps, one a tile: "13 + purple 6 = 19 ;", "green 6 = 5 ;"."""
    steps = []
    total = question.start
    for number, tile in enumerate(question.asked):
        opening = f"{question.start} + " if number == 0 else ""
        total = (total + tile.dots) % MODULUS
        steps.append(f"{opening}{tile.colour} {tile.dots} = {total} ;")
    return [*steps, f"unknown = {answer(question)} ;"] if question.unknown else steps


def answer(question: TileSum) -> int:
    return (question.start + sum(tile.dots for tile in question.asked) + question.unknown) % MODULUS


def shown(question: TileSum) -> Shown:
    in_cell_order = sorted(question.tiles, key=lambda tile: tile.cell)
    return tuple((tile.colour, str(tile.dots)) for tile in in_cell_order)


def draw_question(level: int, rng: random.Random, id: str = "") -> Question:
    return as_question(draw_tile_sum(level, rng), id)


def as_question(drawn: TileSum, id: str = "") -> Question:
    problem, *paraphrases = wordings(drawn)
    return Question(
        id=id,
        problem=problem,
        answer=str(answer(drawn)),
        image=render(drawn),
        level=drawn.level,
        num_levels=len(LEVELS),
        paraphrases=tuple(paraphrases),
        steps=tuple(solve(drawn)),
        shown=shown(drawn),
    )


def draw_questions(split: str, counts: Mapping[int, int]) -> list[Question]:
    """`counts[level]` questions of each level, in a mixed order. Another split's name draws others."""
    rng = random.Random(f"tiles {split}")
    levels = [level for level, count in counts.items() for _ in range(count)]
    rng.shuffle(levels)
    return [draw_question(level, rng, f"tiles-{split}-{index:04d}") for index, level in enumerate(levels)]
