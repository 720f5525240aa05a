"""What variants do to accuracy is measured against their own originals, and takes the assumed shift's place by
degrees."""

import math
import statistics
from dataclasses import replace

import pytest

from diva_engine.algorithm.difficulty import DifficultyLedger, answered_variants
from diva_engine.algorithm.plans import PlanContext, ask_originals_and_variants
from diva_engine.algorithm.variant_effects import Effect, VariantEffects, calibrated, place_of
from diva_engine.config import Config, DifficultyConfig
from diva_engine.records import Problem, Variant
from diva_engine.settings import build_config
from python_tests.scored import make_group

QUESTION = Problem(id="q", text="?", answer="1")


def variant(kind, shift=0, **fields):
    fields = {"index": 1, "text": "?", "difficulty": 5.0 + shift, **fields}
    return Variant(QUESTION, kind=kind, shift=shift, **fields)


PLACES = {
    "hint of two steps": (variant("hint", -3, num_hint_steps=2), ("hint", 2)),
    "hint of many": (variant("hint", -8, num_hint_steps=9), ("hint", 4)),
    "perturbation": (variant("perturbation", 5), ("perturbation", 5)),
    "text in the image, 7": (variant("text_in_image", 7), ("text_in_image", 7)),
    "text in the image, 8": (variant("text_in_image", 8), ("text_in_image", 7)),
    "paraphrase": (variant("paraphrase"), ("paraphrase", 0)),
    "nothing to change": (variant("original", fallback=True), ("original", 0)),
}


@pytest.mark.parametrize(("one", "place"), PLACES.values(), ids=PLACES)
def test_variants_are_counted_by_kind_and_strength(one, place):
    assert place_of(one) == place


def step_of(differences, kind="perturbation", shift=3):
    """Groups of four: the originals half right, the variants by so much more."""
    groups = []
    for number, difference in enumerate(differences):
        right = round(4 * (0.5 + difference))
        pair = [make_group([1.0, 1.0, 0.0, 0.0], f"q{number}")]
        pair.append(make_group([1.0] * right + [0.0] * (4 - right), f"q{number}", index=1, kind=kind))
        pair[1] = replace(pair[1], request=replace(pair[1].request, variant=replace(pair[1].variant, shift=shift)))
        groups += pair
    return groups


def observed(*steps):
    ledger = DifficultyLedger(DifficultyConfig())
    for number, groups in enumerate(steps):
        ledger.observe(groups, number)
    return ledger.effects


def test_the_effect_is_the_mean_difference_to_the_own_original():
    differences = [-0.5, -0.25, 0.0, -0.5, 0.25]
    effects = observed(step_of(differences[:2]), step_of(differences[2:]))
    ((kind, strength, effect),) = effects.table()
    assert (kind, strength, effect.count) == ("perturbation", 3, 5)
    assert effect.mean == pytest.approx(statistics.mean(differences))
    assert effect.std_error == pytest.approx(statistics.stdev(differences) / math.sqrt(5))


def test_only_pairs_count():
    alone = [make_group([1.0, 0.0], "a", index=1, kind="hint"), make_group([1.0, 1.0], "b")]
    unanswered = make_group([], "b", index=1, kind="hint")
    effects = observed([*alone, unanswered])
    assert effects.table() == []
    assert math.isnan(Effect(1, 0.5).std_error)


CALIBRATED = {
    "nothing measured: the assumption": ([], 3.0),
    "as many pairs as it weighs: half way": ([-0.5] * 4, (3.0 + 4 * 0.5) / 2),
    "easier than assumed to be harder": ([0.5] * 4, (3.0 - 4 * 0.5) / 2),
    "many pairs: the measurement": ([-0.25] * 4000, 1.0),
}


@pytest.mark.parametrize(("differences", "shift"), CALIBRATED.values(), ids=CALIBRATED)
def test_measured_shifts_take_over_by_degrees(differences, shift):
    config = build_config({"variants.calibrate": True, "variants.calibration_pairs": 4})
    effects = observed(step_of(differences)) if differences else VariantEffects()
    posed = calibrated(variant("perturbation", 3), effects, config)
    assert posed.difficulty - 5.0 == pytest.approx(shift, abs=0.01)
    assert posed.shift == 3, "what was drawn stays on record"
    assert calibrated(variant("perturbation", 3), effects, Config()) == variant("perturbation", 3), "only when asked"
    assert calibrated(variant("original"), effects, config) == variant("original")


def test_a_plan_poses_calibrated_variants_with_the_same_pixels():
    problem = replace(QUESTION, images=(b"x",), text="<image>?", difficulty=3.0)
    levels = []
    for calibrate in (False, True):
        config = build_config({"variants.calibrate": calibrate, "variants.num": 3, "variants.calibration_pairs": 1})
        ledger = DifficultyLedger(config.difficulty)
        for shift in range(1, 7):
            ledger.effects.observe(
                answered_variants(step_of([-0.5] * 50, shift=shift)), {f"q{i}": 0.5 for i in range(50)}
            )
        requests = next(ask_originals_and_variants([problem], PlanContext(config, ledger, step=0)))
        levels.append([request.variant.difficulty for request in requests])
        posed = [replace(request.variant, difficulty=0.0) for request in requests]
        levels[-1].append(posed)
    assert levels[0].pop() == levels[1].pop(), "difficulty apart, the same variants"
    assert levels[0][0] == levels[1][0] == 3.0
    assert [v.kind for v in posed] == ["original", "perturbation", "text_in_image", "perturbation"]
    assert levels[0][1:] == [6.0, 10.0, 7.0]
    # Half as often right: two levels harder. Of text in the image nothing is known yet.
    assert levels[1][1:] == [pytest.approx(3 + (50 * 2 + 3) / 51), 10.0, pytest.approx(3 + (50 * 2 + 4) / 51)]


def test_state_is_restored_exactly():
    first = observed(step_of([-0.5, 0.25, 0.0]), step_of([0.5], "hint", -2))
    second = VariantEffects()
    second.load_state_dict(first.state_dict())
    for effects in (first, second):
        effects.observe(answered_variants(step_of([0.25])), {"q0": 0.5})
    assert first.table() == second.table()
    assert len(first.table()) == 2
