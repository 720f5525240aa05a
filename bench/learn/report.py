"""From finished runs to tables and one JSON file a sweep."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from bench.harness import environment
from bench.learn.groups import Group, column
from bench.learn.sweep import Results, Targets
from bench.learn.tables import against_table, end_table, goals_of, summary_table, target_table

RESULTS = Path(__file__).resolve().parents[1] / "results"
COLUMNS = ("rollouts", "step", "cpu_s", "all", "hard", "differing")
OURS, AGAINST = "rescue", ("grpo", "diva", "gold")  # of the table of ratios
SHARES = ("dead", "utilisation", "nonzero", "teaching", "difficulty", "length", "entropy")


def print_report(groups: Sequence[Group], targets: Targets, console: Console) -> None:
    tables = [summary_table(groups, targets), against_table(groups, targets, OURS, AGAINST)]
    for regime in dict.fromkeys(group.regime for group in groups):
        chosen = [group for group in groups if group.regime == regime]
        tables += [target_table(chosen, *goal) for goal in goals_of(targets[regime])]
        tables.append(end_table(chosen))
    for table in tables:
        console.print(table, markup=False, highlight=False)


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
