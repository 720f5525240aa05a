"""The finished runs of a sweep, gathered: the seeds of one method in one regime at one pace."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from bench.learn.curve import Reached, area_under_curve, time_to_target
from bench.learn.paces import Pace, pace_of
from bench.learn.run import Job
from bench.learn.sweep import Folder, Results
from bench.learn.sweeps import AREA_UNTIL


@dataclass(frozen=True)
class Group:
    """The seeds of one method in one regime, under one kind of references and reward."""

    regime: str
    method: str
    pace: Pace
    condition: str  # "" for clean references and the whole derivation as reward
    runs: Sequence[Results]

    @property
    def name(self) -> str:
        return f"{self.method} ({self.condition})" if self.condition else self.method

    @property
    def seeds(self) -> list[int]:
        return [run["job"]["seed"] for run in self.runs]

    def reached(self, name: str, target: float, by: str = "rollouts") -> list[Reached]:
        """Per seed, what had been spent when ALL or HARD (`name`) was at the target."""
        return [time_to_target(column(run, by), column(run, name), target) for run in self.runs]

    def last(self, name: str) -> list[float]:
        return [run["points"][-1][name] for run in self.runs]

    def mean_of(self, name: str) -> float:
        """A share over all steps of all seeds, each evaluation's stretch counting alike."""
        return statistics.fmean(p[name] for run in self.runs for p in run["points"] if name in p)

    def areas(self, name: str) -> list[float]:
        return [area_under_curve(column(run, "rollouts"), column(run, name), AREA_UNTIL) for run in self.runs]


def column(run: Results, name: str) -> list[float]:
    return [point[name] for point in run["points"]]


def groups_of(jobs: Sequence[Job], folder: Folder) -> list[Group]:
    """The finished runs by regime, method and condition, in the order of the jobs."""
    found: dict[tuple[str, str, Pace, str], list[Results]] = {}
    for job in jobs:
        if folder.is_done(job):
            found.setdefault((job.regime, job.method, pace_of(job), _condition(job)), []).append(folder.read(job))
    return [Group(*key, runs) for key, runs in found.items()]


def _condition(job: Job) -> str:
    words = [f"{job.references} references"] * (job.references != "clean")
    return ", ".join(words + ["answer-only reward"] * (job.reward == "answer"))
