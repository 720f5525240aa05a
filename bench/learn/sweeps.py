"""The named sweeps: which runs each is made of."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from bench.learn.paces import ABLATIONS, GOALS, MAIN, OTHERS, PACES, REGIMES, SECOND_FAMILY
from bench.learn.run import BUDGET, Job, Stop
from bench.learn.sweep import Targets

BUDGETS = {"saturated": 10240}  # rollouts of a main run where it is not BUDGET: grpo may be stuck for long
SHORT_BUDGET = 5120  # rollouts of a run that is no part of the main sweep
NOT_CHOSEN = 0.0  # the learning rate of a job before its pace is chosen
AREA_UNTIL = 3840  # rollouts over which the area under a curve is taken
REPORTED_SEEDS = (80, 81, 82, 83)

BESIDE: Mapping[str, Sequence[str]] = {  # methods of the main sweep that a report shows beside a sweep's own runs
    "others": ("grpo", "diva"),
    "ablations": ("grpo", "diva", "rescue"),
    "robustness": ("grpo", "rescue", "gold"),
}
SWEEPS = ("main", "paces", "others", "ablations", "robustness")

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


def jobs_of(sweep: str) -> list[Job]:
    """The reported runs of a sweep, in the order in which they are worth having.

    Their paces are not set, but in `paces`: grpo at every one, so that others can be held against its best.
    """
    if sweep == "robustness":
        return [job for seed in REPORTED_SEEDS for job in _robustness_jobs(seed)]
    if sweep == "paces":
        return [
            pace.of(Job(regime, "grpo", pace.lr, seed))
            for seed in REPORTED_SEEDS
            for regime in REGIMES
            for pace in PACES
        ]
    ablated = [method for methods in ABLATIONS.values() for method in methods]
    methods = {"main": MAIN, "others": OTHERS, "ablations": ablated}[sweep]
    return [
        Job(regime, method, NOT_CHOSEN, seed, budget=_budget(sweep, regime))
        for seed in REPORTED_SEEDS
        for regime in (*REGIMES, *[SECOND_FAMILY] * (sweep == "main"))
        for method in methods
    ]


def _budget(sweep: str, regime: str) -> int:
    return BUDGETS.get(regime, BUDGET) if sweep == "main" else SHORT_BUDGET


def jobs_to_report(sweep: str) -> list[Job]:
    """A sweep's jobs, after those of the main sweep that they are held against."""
    beside = [job for job in jobs_of("main") if job.method in BESIDE.get(sweep, ())]
    return [*beside, *jobs_of(sweep), *(jobs_of("paces") if sweep == "main" else [])]


def _robustness_jobs(seed: int) -> Iterator[Job]:
    """Bad references and a lax reward for the methods that read references, beside grpo; and levels never trained."""
    for regime in ("gap", "saturated"):
        for references in ("wrong", "paraphrased", "long"):
            for method in ("rescue", "gold"):
                yield Job(regime, method, NOT_CHOSEN, seed, references, budget=SHORT_BUDGET)
        for method in ("grpo", "rescue", "gold"):
            yield Job(regime, method, NOT_CHOSEN, seed, reward="answer", budget=SHORT_BUDGET)
    for method in MAIN:
        yield Job("untrained", method, NOT_CHOSEN, seed)
