"""DIVA's three tiers: which variant a level asks for, what it looks like, and what happens when the record lacks it."""

import random
from collections import Counter
from dataclasses import replace

import pytest

from diva_engine.algorithm.variants import (
    MEAN_SHIFT,
    QUESTION_IS_IN_IMAGE,
    ROTATED,
    VariantSettings,
    _nearest_possible,
    draw_shift,
    draw_variants,
    pose_variant,
    usable_steps,
)
from diva_engine.config import HintConfig, VariantsConfig
from diva_engine.records import Problem

SETTINGS = VariantSettings(VariantsConfig(num=1), HintConfig())
PREFIXED = VariantSettings(VariantsConfig(num=1), HintConfig(inject="answer"))
FULL = Problem(
    id="q",
    text="<image> What is the angle?",
    answer="65",
    images=(b"png",),
    paraphrases=("<image> Find the angle.",),
    steps=("The sum is 180.", "115 is known.", "180 - 115 is left.", "So the angle is 65."),
)


def pose(shift, problem=FULL, settings=SETTINGS, seed=0):
    return pose_variant(problem, 1, 5.0, shift, settings, random.Random(seed))


@pytest.mark.parametrize("level", MEAN_SHIFT)
def test_shifts_scatter_around_the_levels_mean(level):
    draw = random.Random(level)
    shifts = [draw_shift(level, draw) for _ in range(20_000)]
    # Clipping to [-8, 8] moves the mean of level 1 (6 + N(0, 1)) by less than 0.01.
    assert sum(shifts) / len(shifts) == pytest.approx(MEAN_SHIFT[level], abs=0.03)
    assert min(shifts) >= -8
    assert max(shifts) <= 8


KINDS = {
    -8: "hint",
    -1: "hint",
    0: "paraphrase",
    1: "perturbation",
    6: "perturbation",
    7: "text_in_image",
    8: "text_in_image",
}


@pytest.mark.parametrize(("shift", "kind"), KINDS.items())
def test_the_shift_decides_the_kind_and_the_difficulty(shift, kind):
    variant = pose(shift)
    assert (variant.kind, variant.difficulty, variant.shift, variant.fallback) == (kind, 5.0 + shift, shift, False)


NUM_STEPS = {-1: 1, -2: 1, -3: 2, -4: 2, -5: 3, -6: 3, -7: 3, -8: 3}


@pytest.mark.parametrize(("shift", "num_steps"), NUM_STEPS.items())
def test_hints_show_the_first_steps_and_never_the_answer(shift, num_steps):
    told = pose(shift)
    assert told.num_hint_steps == num_steps
    assert "\n".join(FULL.steps[:num_steps]) in told.text
    assert "65" not in told.text
    begun = pose(shift, settings=PREFIXED)
    assert begun.text == FULL.text
    assert begun.answer_prefix == "<think>\n" + "\n".join(FULL.steps[:num_steps]) + "\n"


OPERATIONS = {1: (1, 0.30), 2: (1, 0.45), 3: (2, 0.30), 4: (2, 0.45), 5: (3, 0.30), 6: (4, 0.45)}


@pytest.mark.parametrize(("shift", "expected"), OPERATIONS.items())
def test_perturbations_have_their_number_and_strength(shift, expected):
    number, strength = expected
    for seed in range(20):
        operations = pose(shift, seed=seed).operations
        names = [operation.name for operation in operations]
        assert len(names) == number == len(set(names))
        assert all(o.strength == strength for o in operations if o.name != "rotate")
        assert all(50 * strength <= abs(o.strength) <= 100 * strength for o in operations if o.name == "rotate")


def test_a_rotation_is_announced_and_only_a_rotation():
    seen = Counter()
    for seed in range(200):
        variant = pose(3, seed=seed)
        rotated = any(operation.name == "rotate" for operation in variant.operations)
        assert (ROTATED in variant.text) == rotated
        seen[rotated] += 1
    assert seen[True] > 0
    assert seen[False] > 0


def test_a_perturbed_question_is_sometimes_rephrased():
    rephrased = sum("Find" in pose(1, seed=seed).text for seed in range(4000)) / 4000
    assert rephrased == pytest.approx(0.2 + 0.07 * 0.30, abs=0.025)


def test_text_in_the_image_leaves_only_a_pointer():
    variant = pose(7)
    assert variant.text == f"<image>\n{QUESTION_IS_IN_IMAGE}"
    assert variant.operations == ()


def test_readable_text_in_an_image_is_only_rotated():
    problem = Problem(**{**vars(FULL), "text_in_image": True})
    for shift in (1, 4, 6, 7, 8):
        assert [operation.name for operation in pose(shift, problem).operations] == ["rotate"]


BARE = Problem(id="b", text="What is 2 + 2?", answer="4")
WORDED = Problem(id="w", text="What is 2 + 2?", answer="4", paraphrases=("Add 2 and 2.",))
FALLBACKS = {
    "hint without steps": (-3, BARE, "original"),
    "hint without steps, with a paraphrase": (-3, WORDED, "paraphrase"),
    "perturbation without an image": (3, WORDED, "paraphrase"),
    "text in image without an image": (8, BARE, "original"),
    "paraphrase without one": (0, BARE, "original"),
}


@pytest.mark.parametrize(("shift", "problem", "kind"), FALLBACKS.values(), ids=FALLBACKS)
def test_what_the_record_lacks_falls_back_and_is_counted(shift, problem, kind):
    variant = pose(shift, problem)
    assert (variant.kind, variant.fallback, variant.shift, variant.difficulty) == (kind, True, 0, 5.0)


ONLY_STEPS = {
    "names the answer": ("So the angle is 65.", False),
    "names a longer number": ("So 165 is out.", True),
    "names a decimal": ("It is 65.5 then.", True),
    "boxed": (r"\boxed{65}", False),
    "no number": ("Subtract.", True),
}


@pytest.mark.parametrize(("only", "shown"), ONLY_STEPS.values(), ids=ONLY_STEPS)
def test_a_single_step_is_held_back_when_it_gives_the_answer_away(only, shown):
    problem = Problem(id="q", text="?", answer="65", steps=(only,))
    assert usable_steps(problem) == ((only,) if shown else ())


@pytest.mark.parametrize("last", ["So x = 1/2.", "the total is one half", "Subtract."])
def test_of_several_steps_the_last_is_never_shown(last):
    problem = Problem(id="q", text="?", answer=r"\frac{1}{2}", steps=("First.", last))
    assert usable_steps(problem) == ("First.",)


def test_the_same_seed_draws_the_same_variants():
    settings = VariantSettings(VariantsConfig(num=5), HintConfig())
    once, again = (draw_variants(FULL, 5.2, settings, random.Random(3)) for _ in range(2))
    assert once == again
    assert [variant.index for variant in once] == [1, 2, 3, 4, 5]


def test_kinds_that_the_record_supports_are_kept():
    for kind in ("hint", "perturbation", "text_in_image", "paraphrase"):
        assert _nearest_possible(kind, FULL, SETTINGS) == kind


def test_a_question_that_the_font_cannot_write_is_perturbed_instead():
    problem = Problem(id="q", text="<image>数?", answer="1", images=(b"x",))
    settings = replace(SETTINGS, is_drawable=lambda text: "数" not in text)
    posed = pose_variant(problem, 1, 2.0, 7, settings, random.Random(0))
    assert (posed.kind, posed.fallback, posed.shift, posed.difficulty) == ("perturbation", True, 0, 2.0)
    assert len(posed.operations) == 4
    drawn = pose_variant(replace(problem, text="<image>?"), 1, 2.0, 7, settings, random.Random(0))
    assert drawn.kind == "text_in_image"


def test_the_settings_name_the_operations():
    for names, most in ((["speckle", "occlusion"], 2), (["low_resolution"], 1)):
        settings = replace(SETTINGS, variants=VariantsConfig(operations=names))
        posed = [pose(shift, settings=settings, seed=seed) for shift in range(1, 7) for seed in range(20)]
        assert {operation.name for variant in posed for operation in variant.operations} == set(names)
        assert max(len(variant.operations) for variant in posed) == most
        assert {operation.strength for variant in posed for operation in variant.operations} == {0.3, 0.45}
