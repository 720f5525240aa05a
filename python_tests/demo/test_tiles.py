"""The tile task: right answers, nothing to be had without the image, splits apart."""

from __future__ import annotations

import random
import re
from collections import Counter

import numpy as np
import pytest

from diva_engine.demo import tiles

OUTLINE_PIXELS, DOT_PIXELS = 84, 16


def count_dots(image: np.ndarray, cell: int) -> int:
    """Dots of one tile, read off the pixels: what is black there, less the tile's outline."""
    row, column = divmod(cell, tiles.GRID)
    window = image[row * tiles.CELL :, column * tiles.CELL :][: tiles.CELL, : tiles.CELL]
    return (int((window == 0).all(-1).sum()) - OUTLINE_PIXELS) // DOT_PIXELS


@pytest.mark.parametrize("level", tiles.LEVELS)
def test_the_answer_is_the_sum_of_the_dots_in_the_image(level: int) -> None:
    for seed in range(20):
        drawn = tiles.draw_tile_sum(level, random.Random(seed))
        image = np.asarray(tiles.render(drawn))
        total = drawn.start + sum(count_dots(image, tile.cell) for tile in drawn.asked)
        assert total % tiles.MODULUS == tiles.answer(drawn)
        assert drawn.level == level


def test_every_number_of_dots_and_every_cell_is_drawn() -> None:
    drawn = [tile for seed in range(50) for tile in tiles.draw_tile_sum(1, random.Random(seed)).tiles]
    assert {tile.dots for tile in drawn} == set(range(1, tiles.MAX_DOTS + 1))
    assert {tile.cell for tile in drawn} == set(range(tiles.GRID**2))


def test_no_wording_tells_a_tiles_dots() -> None:
    drawn = tiles.draw_tile_sum(4, random.Random(0))
    for wording in tiles.wordings(drawn):
        assert [int(number) for number in re.findall(r"\d+", wording)] == [drawn.start, 20]
        assert wording.count("<image>") == 1
        assert all(tile.colour in wording for tile in drawn.asked)


def test_steps_and_answer_make_the_whole_solution() -> None:
    asked = (tiles.Tile(0, "purple", 6, (0, 0)), tiles.Tile(5, "green", 7, (0, 0)))
    drawn = tiles.TileSum(start=13, asked=asked, tiles=asked, background=255)
    assert tiles.solve(drawn) == ["13 + purple 6 = 19 ;", "green 7 = 6 ;"]
    assert tiles.answer(drawn) == 6


def test_levels_come_as_often_as_asked_and_splits_share_no_image() -> None:
    counts = {1: 4, 4: 2, 6: 8}
    train, test = tiles.draw_questions("train", counts), tiles.draw_questions("test", counts)
    assert Counter(question.level for question in train) == counts
    assert [train[0].level, train[1].level] != [1, 1]
    assert {question.level: question.difficulty for question in train} == {1: 1.0, 4: pytest.approx(5.8), 6: 9.0}
    images = {question.image.tobytes() for question in train + test}
    assert len(images) == len(train + test)
    assert len({question.id for question in train + test}) == len(train + test)


def test_the_same_split_is_drawn_alike_every_time() -> None:
    assert tiles.draw_questions("train", {2: 3}) == tiles.draw_questions("train", {2: 3})


@pytest.mark.parametrize("level", tiles.LEVELS)
def test_guessing_without_the_image_is_right_once_in_eight_at_best(level: int) -> None:
    """The best guess knows the start number and the distribution of the dots' sum."""
    rng = random.Random(level)
    drawn = [tiles.draw_tile_sum(level, rng) for _ in range(3000)]
    sums = Counter((tiles.answer(question) - question.start) % tiles.MODULUS for question in drawn)
    assert sums.most_common(1)[0][1] / len(drawn) < 1 / 8
