"""The tables of a report, as Markdown."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

from bench.learn.curve import Reached, median_reached
from bench.learn.groups import Group
from bench.learn.methods import METHODS
from bench.learn.sweep import Targets
from bench.learn.sweeps import AREA_UNTIL


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


def summary_table(groups: Sequence[Group], targets: Targets) -> str:
    """Rollouts to each target, medians over the seeds: a row a method, a column a regime."""
    regimes = list(dict.fromkeys(group.regime for group in groups))
    cells: dict[str, dict[str, str]] = {}
    for group in groups:
        medians = [_bound(median_reached(group.reached(*goal))) for goal in goals_of(targets[group.regime])]
        # Of a method at several paces the one named first, which was chosen for it.
        cells.setdefault(group.name, {}).setdefault(group.regime, " / ".join(medians))
    heads = [f"{regime}: {_names(targets[regime])}" for regime in regimes]
    rows = [[name, *(found.get(regime, "-") for regime in regimes)] for name, found in cells.items()]
    return markdown("Rollouts to the targets, medians", ["method", *heads], rows)


def against_table(groups: Sequence[Group], targets: Targets, ours: str, others: Sequence[str]) -> str:
    """How many times less `ours` needs than each of the others at its chosen pace: rollouts and CPU time."""
    regimes = list(dict.fromkeys(group.regime for group in groups))
    chosen: dict[tuple[str, str], Group] = {}
    for group in groups:
        chosen.setdefault((group.name, group.regime), group)
    rows = []
    for other in others:
        for by, words in (("rollouts", "fewer rollouts"), ("cpu_s", "less CPU time")):
            row = [f"{words} than {other}"]
            for regime in regimes:
                pair = chosen.get((other, regime)), chosen.get((ours, regime))
                row.append(_ratios(*pair, targets, by))
            rows.append(row)
    heads = [f"{regime}: {_names(targets[regime])}" for regime in regimes]
    return markdown(f"{ours} needs", [ours, *heads], rows)


def _ratios(other: Group | None, ours: Group | None, targets: Targets, by: str) -> str:
    if ours is None or other is None:
        return "-"
    return " / ".join(ratio(other, ours, *goal, by) for goal in goals_of(targets[ours.regime]))


def goals_of(targets: Mapping[str, float]) -> list[tuple[str, float]]:
    """A regime's targets as (name of the curve, accuracy); ALL may have two."""
    return [(name.removesuffix("_beyond"), target) for name, target in targets.items()]


def _names(targets: Mapping[str, float]) -> str:
    return " / ".join(f"{name.upper()} {target:.2f}" for name, target in goals_of(targets))
