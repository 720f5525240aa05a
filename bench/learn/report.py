"""From finished runs to tables and one JSON file a sweep."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from bench.harness import environment
from bench.learn.curve import Reached, area_under_curve, median_reached, time_to_target
from bench.learn.methods import METHODS
from bench.learn.paces import Pace, pace_of
from bench.learn.run import Job
from bench.learn.sweep import Folder, Results, Targets
from bench.learn.sweeps import AREA_UNTIL

RESULTS = Path(__file__).resolve().parents[1] / "results"
COLUMNS = ("rollouts", "step", "cpu_s", "all", "hard", "differing")
SHARES = ("dead", "utilisation", "nonzero", "teaching", "difficulty", "length", "entropy")


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


def print_report(groups: Sequence[Group], targets: Targets, console: Console) -> None:
    for regime in dict.fromkeys(group.regime for group in groups):
        chosen = [group for group in groups if group.regime == regime]
        for name, target in targets[regime].items():
            curve = name.removesuffix("_beyond")
            console.print(target_table(chosen, curve, target), markup=False, highlight=False)
        console.print(end_table(chosen), markup=False, highlight=False)


def markdown(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return f"\n{title}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines)


def target_table(groups: Sequence[Group], name: str, target: float) -> str:
    """What each method had spent when it reached the target: median and every seed; ">" marks a run that never did."""
    heads = (
        "method",
        "lr",
        "a step",
        "prompts an update",
        "references",
        "rollouts",
        "steps",
        "CPU s",
        "fewer rollouts than grpo at its best",
        "less CPU",
    )
    by_rate = [group for group in groups if group.name == "grpo"]
    grpo = min(by_rate, key=lambda group: _order(median_reached(group.reached(name, target))), default=None)
    rows = []
    for group in groups:
        reads = "read" if METHODS[group.method].reads_references else "-"
        spent = [group.reached(name, target, by) for by in ("rollouts", "step", "cpu_s")]
        factors = [ratio(grpo, group, name, target, by) for by in ("rollouts", "cpu_s")]
        pace = [f"{group.pace.lr:g}", str(group.pace.per_step), str(group.pace.per_update or "all")]
        rows.append([group.name, *pace, reads, *map(_with_seeds, spent), *factors])
    seeds = ", or ".join(dict.fromkeys("seeds " + " ".join(map(str, group.seeds)) for group in groups))
    title = f"{groups[0].regime}, to {name.upper()} {target:.2f}: median [{seeds}]"
    return markdown(title, heads, rows)


def _order(reached: Reached) -> tuple[bool, float]:
    return reached.is_censored, reached.spent


def ratio(other: Group | None, group: Group, name: str, target: float, by: str) -> str:
    """How many times less than the other the group needs, by the medians; "-" where it does not arrive itself."""
    if other is None:
        return "-"
    ours, theirs = (median_reached(g.reached(name, target, by)) for g in (group, other))
    if ours.is_censored or not ours.spent:
        return "-"
    return f"{'>=' if theirs.is_censored else ''}{theirs.spent / ours.spent:.1f}x"


def end_table(groups: Sequence[Group]) -> str:
    area = f"area to {AREA_UNTIL}, ALL / HARD"
    shares = ("dead questions", "non-zero advantage", "teach", "answers differ")
    heads = ("method", "ALL", "HARD", area, *shares, "rollouts", "CPU s a step")
    rows = []
    for group in groups:
        ends = [_ends(group.last(name)) for name in ("all", "hard")]
        areas = " / ".join(_share(statistics.fmean(group.areas(name))) for name in ("all", "hard"))
        found = [_share(group.mean_of(name)) for name in ("dead", "nonzero", "teaching")]
        differing = _share(statistics.median(group.last("differing")))
        rollouts = "/".join(f"{value:,.0f}" for value in sorted(set(group.last("rollouts"))))
        per_step = sum(group.last("cpu_s")) / sum(group.last("step"))
        rows.append([group.name, *ends, areas, *found, differing, rollouts, f"{per_step:.2f}"])
    return markdown(f"{groups[0].regime}, at the end of the runs; shares over the whole run", heads, rows)


def _with_seeds(runs: Sequence[Reached]) -> str:
    return f"{_bound(median_reached(runs))} [{' '.join(str(run) for run in runs)}]"


def _bound(median: Reached) -> str:
    return f"{'>=' if median.is_censored else ''}{median.spent:,.0f}"


def _ends(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.2f} [{' '.join(f'{value:.2f}' for value in values)}]"


def _share(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.2f}"


def write_results(sweep: str, groups: Sequence[Group], targets: Targets, rates: Sequence[Group]) -> Path:
    """bench/results/learn-<sweep>.json: every run's curve, and the runs by which the paces were chosen."""
    path = RESULTS / f"learn-{sweep}.json"
    results = {
        "environment": environment(),
        "targets": targets,
        "runs": [compact(run) for group in groups for run in group.runs],
        "choosing_runs": [compact(run) for group in rates for run in group.runs],
    }
    lines = json.dumps(results, separators=(",", ":")).replace('},{"job"', '},\n{"job"')
    path.write_text(lines + "\n", encoding="utf-8")
    return path


def compact(run: Results) -> dict[str, Any]:
    """The run by columns, one value an evaluation; shares begin at the second."""
    columns: dict[str, Any] = {name: column(run, name) for name in COLUMNS}
    later = run["points"][1:]
    columns |= {name: [point[name] for point in later] for name in SHARES if later and name in later[0]}
    ends: Mapping[str, float] = run["points"][-1]["levels"]
    surface = {"surface": run["surface"]} if run["job"]["method"] == "diva" else {}  # the others pose no variants
    return {"job": run["job"], **columns, "levels_at_end": ends, **surface}
