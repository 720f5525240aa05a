"""Settings of the recipes: what is asked, how answers are credited."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from diva_engine.config.setting import setting


@dataclass(frozen=True)
class AlgorithmConfig:
    adv_estimator: str = setting("grpo", "name of the recipe; `python -m diva_engine.train --list` prints them")
    preset: Literal["paper", "authors"] = setting(
        "paper", "what the recipe presets: its paper's settings, or those of the authors' code where it differs (diva)"
    )
    disable_kl: bool = setting(True, "leave out the divergence from the starting weights, and the model that it needs")
    use_kl_loss: bool = setting(True, "the divergence is a term of the loss; false: it is taken off the reward")
    kl_penalty: Literal["k1", "k2", "k3"] = setting(
        "k3",
        "estimator of the divergence, d = logp_reference - logp: -d, d^2 / 2, exp(d) - d - 1 (EasyR1: low_var_kl)",
    )
    kl_coef: float = setting(0.01, "weight of the divergence", low=0)


@dataclass(frozen=True)
class AdvantageConfig:
    std: Literal["sample", "population"] = setting("sample", "standard deviation over n - 1 or over n")
    eps: float = setting(1e-6, "added to every standard deviation", low=0)
    balance: Literal["sequences", "padded_tokens", "minmax", "none", "global_only"] = setting(
        "sequences",
        "batch normalisation of the local and the global advantage; global_only: the global one alone, not normalised",
    )
    weight: Literal["global", "both", "none"] = setting("global", "which advantage is weighted by difficulty")
    k: float = setting(0.1, "strength of the difficulty weight exp(k * (D_i - mean D) * sign A)", low=0)
    rrb: Literal["range", "threshold", "none"] = setting(
        "none", "reward-range rescaling of each advantage, on top of any recipe; diva presets `range`"
    )
    r_max: float = setting(1.0, "largest possible reward", low=1e-9)
    w_local: float = setting(1.0, "weight of the local advantage in the sum", low=0)
    w_global: float = setting(1.0, "weight of the global advantage in the sum", low=0)


@dataclass(frozen=True)
class DifficultyConfig:
    rule: Literal["continuous", "steps"] = setting("continuous", "D + eta * (0.5 - accuracy), or the stepped table")
    initial: float = setting(5.0, "level of a question whose record has none", low=1, high=9)
    eta: float = setting(4.0, "step of the continuous rule", low=0)
    low: float = setting(1.0, "lowest level", low=1)
    high: float = setting(9.0, "highest level", high=9)
    accuracy_over: Literal["all", "originals", "variants"] = setting("all", "whose accuracy drives the difficulty")
    rest_solved: int = setting(
        0,
        "most times that a question is passed over after its rollouts were all right: once at first, twice as often "
        "after each such visit in a row; 0: never",
        low=0,
    )
    warm_start: str = setting(
        "", "ledger of another run to start from, as `python -m diva_engine.report --ledger` writes it"
    )


@dataclass(frozen=True)
class VariantsConfig:
    num: int = setting(1, "variants posed beside the original question", low=0)
    operations: list[str] = setting(
        ["rotate", "gaussian", "salt_pepper", "blur"],
        "what a picture is perturbed by; also speckle, low_resolution, occlusion",
    )
    rotation_degrees_per_strength: float = setting(
        100.0, "largest angle of a rotation, in degrees per unit of strength", low=0
    )
    calibrate: bool = setting(
        False, "a variant's difficulty is what its kind has been measured to do to accuracy, not what its shift assumes"
    )
    calibration_pairs: int = setting(
        32, "pairs of variant and original that the assumed shift weighs as much as, in a calibrated one", low=1
    )


@dataclass(frozen=True)
class HintConfig:
    inject: Literal["question", "answer"] = setting("question", "hints are told in the question, or begin the answer")
    question_template: str = setting(
        "{question}\nHint: the first steps are: {steps}\nReason from the start.",
        "wording of a hint told in the question",
    )
    answer_template: str = setting("<think>\n{steps}\n", "forced beginning of the answer")
    separator: str = setting("\n", "what stands between two steps")


@dataclass(frozen=True)
class DapoConfig:
    max_draws: int = setting(10, "most draws of questions in one step, in search of live groups", low=1)
    live_by: Literal["reward", "accuracy"] = setting("reward", "a group is live where these are not all equal")
    overlong_share: float = setting(
        0.2, "last share of max_response_length over which the penalty of a long answer rises; 0 is off", low=0, high=1
    )
    overlong_penalty: float = setting(1.0, "taken off the reward of an answer of max_response_length", low=0)


@dataclass(frozen=True)
class DurianConfig:
    base: Literal["grpo", "dapo"] = setting("grpo", "which questions are asked, and how answers are rewarded")
    w_original: float = setting(0.6, "weight of the advantage by the prompt's own std", low=0)
    w_perceptual: float = setting(0.2, "weight of the one by the std of questions as hard to see; 0 is off", low=0)
    w_reasoning: float = setting(0.2, "weight of the one by the std of questions as hard to reason; 0 is off", low=0)
    num_reasoning_groups: int = setting(12, "quantile groups of the reasoning score", low=1)
    entropy: Literal["spectral", "histogram"] = setting(
        "spectral", "perceptual score: spectrum of the vision tower's patch features, or histogram of grey levels"
    )
    refresh_steps: int = setting(0, "steps after which a question's pictures are looked at anew; 0: once", low=0)


@dataclass(frozen=True)
class HintGrpoConfig:
    groups: int = setting(3, "hint groups of a question; group i is shown the first i / groups of its steps", low=1)
    ladder: Literal["all", "lazy"] = setting(
        "all", "generate every group, or a longer hint only for questions without a positive rollout so far"
    )
    select: Literal["first_positive", "fewest_unequal"] = setting(
        "first_positive", "train on the shortest hint with a positive rollout (the authors), or with unequal rewards"
    )
    positive_by: Literal["accuracy", "reward"] = setting(
        "accuracy", "a rollout is positive where this is above 0; by reward (the authors) form alone is enough"
    )


@dataclass(frozen=True)
class RescueConfig:
    probe: int = setting(4, "plain rollouts of every question, before the rest of the step's is shared out", low=1)
    probe_solved: int = setting(1, "the same of a question whose rollouts were all right on its last visit", low=1)
    dead_by: Literal["probe", "last_visit"] = setting(
        "probe", "who is hinted: who fails the probe, or, in one stage, whose last visit had no right rollout"
    )
    max_rollouts: int = setting(12, "most rollouts that the second stage gives one question", low=1)
    beta: float = setting(1.0, "weight of the forced prefix in the loss; 0 trains no prefix", low=0)
    normalize_prefix: bool = setting(False, "divide a prefix's weight by its tokens, for long solutions")
    shorten_above: float = setting(0.7, "a hint that succeeds more often than this gets shorter", low=0, high=1)
    patience: int = setting(3, "failures of the longest hint in a row after which a question gets none", low=1)
    rest: int = setting(4, "visits for which such a question is left to plain rollouts", low=1)
    shared_std: bool = setting(False, "advantages as in durian: their std shared among questions as hard")
    hints: bool = setting(True, "force the beginning of dead questions' answers; false: they get plain rollouts")
    perturb_solved: bool = setting(False, "solved questions get rollouts of a perturbed variant in the second stage")
