"""A method's pace: its rollouts a step, its prompts an optimizer step and its learning rate.

It is chosen for each method and regime on seeds that are never reported; the reported runs use it unseen.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

from bench.learn.curve import time_to_target
from bench.learn.run import Job
from bench.learn.sweep import Folder, Results, Targets

REGIMES = ("gap", "saturated", "ladder")
SECOND_FAMILY = "chains"  # a regime of `main` alone
MAIN = ("grpo", "diva", "rescue", "gold")
OTHERS = ("diva_n3", "hint_grpo", "dapo", "durian", "dr_grpo", "gspo", "diva_prompt", "diva_n3_prompt")
# The others choose a learning rate only, with the steps of a method of the main sweep.
STEPS_OF = {
    **dict.fromkeys(("dapo", "durian", "dr_grpo", "gspo"), "grpo"),
    **dict.fromkeys(("diva_n3", "hint_grpo", "diva_prompt", "diva_n3_prompt"), "diva"),
}
ABLATIONS: Mapping[str, Sequence[str]] = {  # by the method whose pace they share
    "rescue": (
        "rescue_no_prefix_credit",
        "rescue_no_hints",
        "rescue_no_probe",
        "rescue_prompt",
        "rescue_full_probe",
        "rescue_rest",
    ),
    "diva": ("diva_no_variants", "diva_no_weight", "diva_no_rrb", "diva_no_balance"),
    "grpo": ("grpo_rrb", "grpo_rest"),
    "durian": ("durian_perceptual", "durian_reasoning"),
}
CHOOSING_SEEDS = (50,)
CHOOSING_BUDGET, QUICK_CHOOSING_BUDGET = 3840, 1920  # rollouts: half a run; a quarter for the methods beside the main
GOALS = ("all", "hard")


@dataclass(frozen=True)
class Pace:
    """What is chosen for each method and regime."""

    per_step: int  # rollouts of a step, at most
    lr: float
    per_update: int = 0  # prompts of an optimizer step, at most; 0: all of the step's

    def __str__(self) -> str:
        update = f", {self.per_update} prompts an update" if self.per_update else ""
        return f"{self.per_step} rollouts a step{update}, lr {self.lr:g}"

    def of(self, job: Job) -> Job:
        """The job at this pace."""
        return replace(job, per_step=self.per_step, lr=self.lr, per_update=self.per_update)


# Several optimizer steps a step move the weights further, so lower rates are tried with them.
PACES = (
    *(Pace(per_step, lr) for per_step, lr in product((64, 128), (1e-4, 2e-4, 5e-5))),
    *(Pace(128, lr, per_update=4) for lr in (1e-4, 5e-5, 2.5e-5)),
)


def pace_of(job: Job) -> Pace:
    return Pace(job.per_step, job.lr, job.per_update)


def choosing_jobs(methods: Iterable[str]) -> list[Job]:
    """The runs by which each method's pace is chosen."""
    return [
        pace.of(Job(regime, method, pace.lr, seed, budget=_choosing_budget(method)))
        for seed in CHOOSING_SEEDS
        for regime in (*REGIMES, SECOND_FAMILY)
        for pace in PACES
        for method in methods
        if regime in REGIMES or method in MAIN
    ]


def _choosing_budget(method: str) -> int:
    return CHOOSING_BUDGET if method in MAIN else QUICK_CHOOSING_BUDGET


def choosing_jobs_of(sweep: str, folder: Folder, targets: Targets) -> list[Job]:
    """The choosing runs of a sweep. Those of `others` take all but the learning rate from a method of the main
    sweep."""
    if sweep != "others":
        return choosing_jobs(MAIN)
    jobs = []
    for job in choosing_jobs(OTHERS):
        leader = choose_pace(job.regime, STEPS_OF[job.method], folder, targets)
        jobs += [job] * ((job.per_step, job.per_update) == (leader.per_step, leader.per_update))
    return jobs


def choose_pace(regime: str, method: str, folder: Folder, targets: Targets) -> Pace:
    """The pace with the fewest rollouts to both targets together; among those that reach none, the highest end."""
    tried: dict[Pace, list[Job]] = {}
    for job in choosing_jobs([method]):
        if job.regime == regime:
            tried.setdefault(pace_of(job), []).append(job)
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


def with_pace(job: Job, folder: Folder, targets: Targets) -> Job:
    """The job at its method's chosen pace; that of its start, where the regime has no choosing runs. A job with a
    pace keeps it.

    Raises LookupError where none was tried.
    """
    if job.lr:
        return job
    regime = job.regime if job.regime in (*REGIMES, SECOND_FAMILY) else "ladder"
    return choose_pace(regime, owner(job.method), folder, targets).of(job)
