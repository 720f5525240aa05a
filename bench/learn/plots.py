"""Plots of a sweep, as SVG: curves with the seeds' band, difficulty over time, the difficulty-advantage surface."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.learn.groups import Group, column
from bench.learn.report import RESULTS
from bench.learn.sweep import Targets
from diva_engine.records import UserError

Floats = npt.NDArray[np.float64]


def plot_sweep(sweep: str, groups: Sequence[Group], targets: Targets) -> list[Path]:
    """The sweep's plots in bench/results/; the surface is drawn where a recipe with variants ran."""
    paths = [plot_curves(sweep, groups, targets), plot_difficulty(sweep, groups)]
    surfaces = [group for group in groups if group.method == "diva"]
    return paths + ([plot_surface(sweep, surfaces)] if surfaces else [])


def plot_curves(sweep: str, groups: Sequence[Group], targets: Targets) -> Path:
    """ALL and HARD over rollouts and over CPU seconds: mean of the seeds, and from the worst seed to the best."""
    regimes = list(dict.fromkeys(group.regime for group in groups))
    figure, axes = _figure(len(regimes), 3)
    colours = {label: f"C{i}" for i, label in enumerate(sorted({label_of(group) for group in groups}))}
    for row, regime in zip(axes, regimes, strict=True):
        for axis, name, by in zip(row, ("all", "hard", "hard"), ("rollouts", "rollouts", "cpu_s"), strict=True):
            for group in (group for group in groups if group.regime == regime):
                spent, values = on_grid(group, name, by)
                axis.plot(spent, values.mean(0), label=label_of(group), color=colours[label_of(group)])
                axis.fill_between(spent, values.min(0), values.max(0), alpha=0.15, color=colours[label_of(group)], lw=0)
            axis.axhline(targets[regime][name], color="gray", lw=0.8, ls=":")
            axis.set(title=f"{regime}: {name.upper()}", xlabel="CPU s" if by == "cpu_s" else by, ylim=(0, 1))
        row[0].legend(fontsize=7)
    return _save(figure, f"learn-{sweep}-curves.svg")


def plot_difficulty(sweep: str, groups: Sequence[Group]) -> Path:
    """Mean level of the questions posed, the share of dead questions, and of rollouts that teach."""
    regimes = list(dict.fromkeys(group.regime for group in groups))
    figure, axes = _figure(len(regimes), 3)
    colours = {label: f"C{i}" for i, label in enumerate(sorted({label_of(group) for group in groups}))}
    names = {"difficulty": "mean difficulty of the step", "dead": "dead questions", "teaching": "rollouts that teach"}
    for row, regime in zip(axes, regimes, strict=True):
        for axis, (name, title) in zip(row, names.items(), strict=True):
            for group in (group for group in groups if group.regime == regime):
                spent, values = on_grid(group, name, "rollouts", first=1)
                axis.plot(spent, values.mean(0), label=label_of(group), color=colours[label_of(group)])
            axis.set(title=f"{regime}: {title}", xlabel="rollouts")
        row[0].legend(fontsize=7)
    return _save(figure, f"learn-{sweep}-difficulty.svg")


def label_of(group: Group) -> str:
    return f"{group.name}, {group.pace}"


def plot_surface(sweep: str, groups: Sequence[Group]) -> Path:
    """Mean advantage of right and of wrong answers, by the level of the variant and the right answers of its prompt."""
    figure, axes = _figure(1, 2, subplot_kw={"projection": "3d"})
    for axis, is_right in zip(axes[0], (True, False), strict=True):
        grid = surface_grid(groups, is_right)
        level, right = np.meshgrid(np.arange(1, 10), np.arange(grid.shape[1]), indexing="ij")
        axis.plot_surface(level, right, np.ma.masked_invalid(grid), cmap="viridis")
        words = "right" if is_right else "wrong"
        axis.set(title=f"diva: advantage of {words} answers", xlabel="difficulty", ylabel="right answers of 8")
    return _save(figure, f"learn-{sweep}-surface.svg")


def surface_grid(groups: Sequence[Group], is_right: bool) -> Floats:
    """[9, 9]: mean advantage by (level 1 to 9, right answers 0 to 8) over all runs; NaN where nothing was seen."""
    count, total = np.zeros((9, 9)), np.zeros((9, 9))
    for group in groups:
        for run in group.runs:
            for level, right, right_one, seen, mean in run["surface"]:
                if right_one == is_right and 1 <= level <= 9 and right <= 8:
                    count[level - 1, right] += seen
                    total[level - 1, right] += seen * mean
    with np.errstate(invalid="ignore"):
        return total / count


def on_grid(group: Group, name: str, by: str, first: int = 0) -> tuple[Floats, Floats]:
    """(x [K], values [seeds, K]) on one grid that every seed covers, from evaluation `first` on."""
    curves = [(column(run, by)[first:], [point[name] for point in run["points"][first:]]) for run in group.runs]
    end = min(spent[-1] for spent, _ in curves)
    start = max(spent[0] for spent, _ in curves)
    grid = np.linspace(start, end, num=max(2, int(max(len(spent) for spent, _ in curves))))
    return grid, np.array([np.interp(grid, spent, values) for spent, values in curves])


def _figure(rows: int, columns: int, **options: Any) -> tuple[Any, Any]:
    try:
        import matplotlib
    except ImportError:
        raise UserError("plots need matplotlib; pip install 'diva-engine[bench]'") from None
    matplotlib.use("Agg")
    # The same numbers give the same file: no date and no random ids in the SVG.
    matplotlib.rcParams.update({"svg.hashsalt": "diva_engine", "font.size": 8, "svg.fonttype": "none"})
    from matplotlib import pyplot

    return pyplot.subplots(
        rows, columns, figsize=(4 * columns, 3 * rows), squeeze=False, layout="constrained", **options
    )


def _save(figure: Any, name: str) -> Path:
    path = RESULTS / name
    figure.savefig(path, metadata={"Date": None})
    return path
