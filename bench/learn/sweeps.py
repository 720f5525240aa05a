"""The named sweeps: which runs each is made of.

A method's pace, that is its rollouts a step and its learning rate, is chosen on seeds that are never reported; the
reported runs use it unseen.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bench.learn.curve import time_to_target
from bench.learn.run import BUDGET, Job, Stop
from bench.learn.sweep import Folder, Results, Targets

REGIMES = ("gap", "saturated", "ladder")
SECOND_FAMILY = "chains"  # a regime of `robustness`, with paces of its own for the methods of `main`
LEARNING_RATES = (1e-4, 2e-4, 5e-5)
STEP_SIZES = (64, 128)  # rollouts
CHOOSING_SEEDS = (50,)
CHOOSING_BUDGET, QUICK_CHOOSING_BUDGET = 3840, 1920  # rollouts: half a run; a quarter for the methods beside the main
BUDGETS = {"saturated": 10240}  # rollouts of a main run where it is not BUDGET: grpo may be stuck for long
SHORT_BUDGET = 5120  # rollouts of a run that is no part of the main sweep
NOT_CHOSEN = 0.0  # the learning rate of a job before one is chosen
AREA_UNTIL = 3840  # rollouts over which the area under a curve is taken
REPORTED_SEEDS = (70, 71, 72, 73)

MAIN = ("grpo", "diva", "rescue", "gold")
OTHERS = ("diva_n3", "hint_grpo", "dapo", "durian", "dr_grpo", "gspo", "diva_prompt", "diva_n3_prompt")
# The others choose a learning rate only, at the step size of a method of the main sweep.
STEP_SIZE_OF = {
    **dict.fromkeys(("dapo", "durian", "dr_grpo", "gspo"), "grpo"),
    **dict.fromkeys(("diva_n3", "hint_grpo", "diva_prompt", "diva_n3_prompt"), "diva"),
}
ABLATIONS: Mapping[str, Sequence[str]] = {  # by the method whose pace they share
    "rescue": ("rescue_no_prefix_credit", "rescue_no_hints", "rescue_no_probe", "rescue_prompt", "rescue_full_probe"),
    "diva": ("diva_no_variants", "diva_no_weight", "diva_no_rrb", "diva_no_balance"),
    "grpo": ("grpo_rrb",),
    "durian": ("durian_perceptual", "durian_reasoning"),
}
BESIDE: Mapping[str, Sequence[str]] = {  # methods of the main sweep that a report shows beside a sweep's own runs
    "others": ("grpo", "diva"),
    "ablations": ("grpo", "diva", "rescue"),
    "robustness": ("grpo", "rescue", "gold"),
}
SWEEPS = ("main", "paces", "others", "ablations", "robustness")

GOALS = ("all", "hard")
TARGETS_FILE = Path(__file__).with_name("targets.json")


def read_targets() -> Targets:
    """By regime: of ALL and of HARD, by which paces are chosen and runs end, and where ALL can be reached by the levels
    alone that the base can do already, one beyond that, which is only reported."""
    targets: Targets = json.loads(TARGETS_FILE.read_text(encoding="utf-8"))
    return targets


def stop_of(job: Job, targets: Targets) -> Stop:
    """A run ends once it keeps both targets; a reported one of the main sweep not before areas can be compared."""
    is_main = (
        job.seed in REPORTED_SEEDS and job.method in MAIN and (job.references, job.reward) == ("clean", "derivation")
    )
    return Stop(tuple(targets[job.regime][name] for name in GOALS), AREA_UNTIL if is_main else 0)


@dataclass(frozen=True)
class Pace:
    """What is chosen for each method and regime."""

    per_step: int  # rollouts of a step, at most
    lr: float

    def __str__(self) -> str:
        return f"{self.per_step} rollouts a step, learning rate {self.lr:g}"


def choosing_jobs(methods: Iterable[str], step_sizes: Sequence[int] = STEP_SIZES) -> list[Job]:
    """The runs by which each method's pace is chosen."""
    return [
        Job(regime, method, lr, seed, budget=_choosing_budget(method), per_step=per_step)
        for seed in CHOOSING_SEEDS
        for regime in (*REGIMES, SECOND_FAMILY)
        for per_step in step_sizes
        for lr in LEARNING_RATES
        for method in methods
        if regime in REGIMES or method in MAIN
    ]


def _choosing_budget(method: str) -> int:
    return CHOOSING_BUDGET if method in MAIN else QUICK_CHOOSING_BUDGET


def choosing_jobs_of(sweep: str, folder: Folder, targets: Targets) -> list[Job]:
    """The choosing runs of a sweep. Those of `others` take their step size from a method of the main sweep."""
    if sweep != "others":
        return choosing_jobs(MAIN)
    jobs = []
    for job in choosing_jobs(OTHERS):
        leader = choose_pace(job.regime, STEP_SIZE_OF[job.method], folder, targets)
        jobs += [job] * (job.per_step == leader.per_step)
    return jobs


def choose_pace(regime: str, method: str, folder: Folder, targets: Targets) -> Pace:
    """The pace with the fewest rollouts to both targets together; among those that reach none, the highest end."""
    tried: dict[Pace, list[Job]] = {}
    for job in choosing_jobs([method]):
        if job.regime == regime:
            tried.setdefault(Pace(job.per_step, job.lr), []).append(job)
    rated = {pace: [folder.read(job) for job in jobs] for pace, jobs in tried.items() if all(map(folder.is_done, jobs))}
    if not rated:
        raise LookupError(f"no learning rate of {method} in {regime} was tried; run `python -m bench.learn choose`")
    return min(rated, key=lambda pace: merit(rated[pace], targets[regime]))


def merit(runs: Sequence[Results], targets: Mapping[str, float]) -> tuple[float, float]:
    """Lower is better: rollouts to both targets, summed over the runs, then what is missing at the end."""
    spent, missing = 0.0, 0.0
    for run in runs:
        points = run["points"]
        rollouts = [point["rollouts"] for point in points]
        for name in GOALS:
            target = targets[name]
            reached = time_to_target(rollouts, [point[name] for point in points], target)
            # A run that never arrives counts as the whole budget, wherever it was ended.
            spent += run["job"]["budget"] if reached.is_censored else reached.spent
            missing += max(0.0, target - points[-1][name])
    return spent, missing


def owner(method: str) -> str:
    """The method whose pace an ablation shares."""
    return next((name for name, ablated in ABLATIONS.items() if method in ablated), method)


def jobs_of(sweep: str) -> list[Job]:
    """The reported runs of a sweep, in the order in which they are worth having.

    Their paces are not set, but in `paces`: grpo at every one, so that others can be held against its best.
    """
    if sweep == "robustness":
        return [job for seed in REPORTED_SEEDS for job in _robustness_jobs(seed)]
    if sweep == "paces":
        return [
            Job(regime, "grpo", lr, seed, per_step=per_step)
            for seed in REPORTED_SEEDS
            for regime in REGIMES
            for per_step in STEP_SIZES
            for lr in LEARNING_RATES
        ]
    ablated = [method for methods in ABLATIONS.values() for method in methods]
    methods = {"main": MAIN, "others": OTHERS, "ablations": ablated}[sweep]
    return [
        Job(regime, method, NOT_CHOSEN, seed, budget=_budget(sweep, regime))
        for seed in REPORTED_SEEDS
        for regime in REGIMES
        for method in methods
    ]


def _budget(sweep: str, regime: str) -> int:
    return BUDGETS.get(regime, BUDGET) if sweep == "main" else SHORT_BUDGET


def jobs_to_report(sweep: str) -> list[Job]:
    """A sweep's jobs, after those of the main sweep that they are held against."""
    beside = [job for job in jobs_of("main") if job.method in BESIDE.get(sweep, ())]
    return [*beside, *jobs_of(sweep), *(jobs_of("paces") if sweep == "main" else [])]


def _robustness_jobs(seed: int) -> Iterator[Job]:
    """Bad references and a lax reward for the methods that read references, beside grpo; levels never trained; and
    the second family of questions."""
    for regime in ("gap", "saturated"):
        for references in ("wrong", "paraphrased", "long"):
            for method in ("rescue", "gold"):
                yield Job(regime, method, NOT_CHOSEN, seed, references, budget=SHORT_BUDGET)
        for method in ("grpo", "rescue", "gold"):
            yield Job(regime, method, NOT_CHOSEN, seed, reward="answer", budget=SHORT_BUDGET)
    for regime in ("untrained", SECOND_FAMILY):
        for method in MAIN:
            yield Job(regime, method, NOT_CHOSEN, seed)


def with_pace(job: Job, folder: Folder, targets: Targets) -> Job:
    """The job at its method's chosen pace; that of its start, where the regime has no choosing runs. A job with a
    pace keeps it.

    Raises LookupError where none was tried.
    """
    if job.lr != NOT_CHOSEN:
        return job
    regime = job.regime if job.regime in (*REGIMES, SECOND_FAMILY) else "ladder"
    pace = choose_pace(regime, owner(job.method), folder, targets)
    return replace(job, per_step=pace.per_step, lr=pace.lr)
