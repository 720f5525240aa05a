"""What the warm-up shows the model: questions with the answers it should learn to give.

*Plain* lessons are questions of the easy levels with their worked answers. *Hinted* ones carry the first steps in the
question, as the trainer's hint variants do, and their answers start over. *Begun* ones have their answer begun for
them. *Varied* ones come with a slightly spoilt image. *Listing* lessons only name the dots of several tiles; without
them the model is slow to learn to find a tile. A mixture may let the teacher err; a model taught so is unsure.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from PIL import Image, ImageFilter

from diva_engine.demo import tiles
from diva_engine.demo.questions import Question, Shown
from diva_engine.demo.vocabulary import HINT, LISTING, ROTATED


@dataclass(frozen=True)
class Lesson:
    """One supervised example."""

    question: str  # with its "<image>" marker
    answer: str
    image: Image.Image | None  # None where the question is text alone
    shown: Shown
    begun: str = ""  # beginning of the answer that is given, not taught


@dataclass(frozen=True)
class Mixture:
    """How often each kind of lesson comes."""

    listing: float  # share of all lessons
    stored: float  # share of all lessons that is taken from the stored questions rather than drawn
    hinted: float  # share of the tile questions
    begun: float  # share of the tile questions
    varied: float  # share of the tile questions, of whatever kind
    levels: Mapping[int, float]  # weight of each level among the plain tile questions
    hinted_levels: Mapping[int, float]
    begun_levels: Mapping[int, float]
    stored_questions: Sequence[Question] = field(default=(), repr=False)
    noise: float = 0.0  # chance that the teacher miscounts a tile, among the steps that are taught
    own_steps: int = 1  # most steps that a begun answer leaves to be taught
    longest: int = 0  # steps after which a plain answer stops, finished or not; 0: no bound
    unknown_taught: Mapping[int, float] = field(default_factory=dict)  # what the teacher takes the unknown term for

    def draw(self, rng: random.Random) -> Lesson:
        return draw_lesson(self, rng)


def draw_lesson(mixture: Mixture, rng: random.Random) -> Lesson:
    draw = rng.random()
    if draw < mixture.listing:
        return _listing(rng)
    if draw < mixture.listing + mixture.stored:
        return _stored(rng.choice(mixture.stored_questions), rng)
    return _tile_sum(mixture, rng)


def _listing(rng: random.Random) -> Lesson:
    drawn = tiles.draw_tile_sum(1, rng)
    named = rng.sample(drawn.tiles, rng.randint(2, len(drawn.tiles)))
    question = LISTING.format(colours=", ".join(tile.colour for tile in named))
    answer = " ".join(f"{tile.colour} {tile.dots} ;" for tile in named)
    return Lesson(question, answer, tiles.render(drawn), tiles.shown(drawn))


def _stored(question: Question, rng: random.Random) -> Lesson:
    return Lesson(_any_wording(question, rng), question.solution, question.image, question.shown)


def _tile_sum(mixture: Mixture, rng: random.Random) -> Lesson:
    kinds = {"hinted": mixture.hinted, "begun": mixture.begun, "plain": 1 - mixture.hinted - mixture.begun}
    kind = rng.choices(list(kinds), list(kinds.values()))[0]
    weights = {"hinted": mixture.hinted_levels, "begun": mixture.begun_levels, "plain": mixture.levels}[kind]
    drawn = tiles.draw_tile_sum(rng.choices(list(weights), list(weights.values()))[0], rng)
    question, begun, num_given = tiles.as_question(drawn), "", 0
    text = _any_wording(question, rng)
    if kind == "hinted":
        num_given = rng.randint(1, max(1, question.level - 1))
        text += HINT.format(steps=" ".join(question.steps[:num_given]))
    elif kind == "begun":
        num_given = question.level - (rng.randint(1, mixture.own_steps) if mixture.own_steps > 1 else 1)
        begun = "<think> " + " ".join(question.steps[:num_given])
    taught = _as_taught(drawn, num_given, mixture, rng)
    answer = (question if taught is drawn else tiles.as_question(taught)).solution.removeprefix(begun).lstrip()
    image = question.image
    if rng.random() < mixture.varied:
        image, remark = spoil(image, rng)
        text += remark
    return Lesson(text, answer, image, question.shown, begun)


def _as_taught(drawn: tiles.TileSum, num_given: int, mixture: Mixture, rng: random.Random) -> tiles.TileSum:
    """The question as the teacher sees it: the given steps right, of the others perhaps some not."""
    taught = drawn
    if mixture.longest and not num_given:
        taught = replace(taught, asked=drawn.asked[: mixture.longest])
    if mixture.noise:
        seen = list(taught.asked)
        for number in range(num_given, len(seen)):
            if rng.random() < mixture.noise:
                seen[number] = replace(seen[number], dots=rng.randint(1, tiles.MAX_DOTS))
        taught = replace(taught, asked=tuple(seen))
    if drawn.unknown and mixture.unknown_taught:
        values = mixture.unknown_taught
        taught = replace(taught, unknown=rng.choices(list(values), list(values.values()))[0])
    return taught


def _any_wording(question: Question, rng: random.Random) -> str:
    return rng.choice([question.problem, *question.paraphrases])


def spoil(image: Image.Image, rng: random.Random) -> tuple[Image.Image, str]:
    """The image slightly rotated, noisy or blurred, and the remark that the question then carries."""
    kind = rng.choice(("rotate", "noise", "blur"))
    if kind == "rotate":
        angle = rng.uniform(-12, 12)
        turned = image.rotate(angle, Image.Resampling.BILINEAR, fillcolor=image.getpixel((0, 0)))
        return turned, ROTATED
    if kind == "blur":
        return image.filter(ImageFilter.GaussianBlur(rng.uniform(0.2, 0.9))), ""
    noise = np.random.default_rng(rng.getrandbits(32)).normal(0, rng.uniform(8, 50), (image.height, image.width, 3))
    noisy = np.clip(np.asarray(image, np.float64) + noise, 0, 255).astype(np.uint8)
    return Image.fromarray(noisy), ""
