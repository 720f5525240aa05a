"""What the commands of `python -m bench.learn` do."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterable
from dataclasses import replace

from rich.console import Console

from bench.learn import paces, sweeps
from bench.learn.bases import BASES, make_base
from bench.learn.groups import Group, groups_of
from bench.learn.plots import plot_sweep
from bench.learn.regimes import REGIMES
from bench.learn.report import print_report, write_results
from bench.learn.run import Job, run
from bench.learn.sweep import Folder, run_jobs
from diva_engine.records import UserError


def bases(options: argparse.Namespace, console: Console) -> None:
    """Makes the bases and prints what each can do before any training."""

    def report(what: str, step: int, steps: int) -> None:
        if step % 100 == 0 or step == steps:
            console.print(f"{what}: step {step} of {steps}")

    folder = Folder(options.folder)
    for name in BASES:
        make_base(folder.path / "bases", name, report)
    for regime in REGIMES.values():
        start = run(Job(regime.name, "grpo", 1e-6, 0, budget=0), folder.base(regime.name))["points"][0]
        levels = "  ".join(f"L{level} {share:.3f}" for level, share in start["levels"].items())
        console.print(f"{regime.name}: ALL {start['all']:.3f}  HARD {start['hard']:.3f}  {levels}")


def choose(options: argparse.Namespace, console: Console) -> None:
    """Tries the paces, then prints which each method will use."""
    folder, targets = Folder(options.folder), sweeps.read_targets()
    jobs = _selected(paces.choosing_jobs_of(options.sweep, folder, targets), options)
    run_jobs(jobs, folder, lambda job: sweeps.stop_of(job, targets), options.workers, console.print)
    for regime, method in dict.fromkeys((job.regime, job.method) for job in jobs):
        console.print(f"{regime} {method}: {paces.choose_pace(regime, method, folder, targets)}")


def run_sweep(options: argparse.Namespace, console: Console) -> None:
    folder, targets = Folder(options.folder), sweeps.read_targets()
    jobs = [paces.with_pace(job, folder, targets) for job in _selected(sweeps.jobs_of(options.sweep), options)]
    run_jobs(jobs, folder, lambda job: sweeps.stop_of(job, targets), options.workers, console.print)


def _selected(jobs: Iterable[Job], options: argparse.Namespace) -> list[Job]:
    """The jobs that the command line's --seeds, --methods and --regimes leave."""
    seeds = {int(word) for word in options.seeds.split(",") if word}
    methods, regimes = ({word for word in words.split(",") if word} for words in (options.methods, options.regimes))
    return [
        job
        for job in jobs
        if (not seeds or job.seed in seeds)
        and (not methods or job.method in methods)
        and (not regimes or job.regime in regimes)
    ]


def report(options: argparse.Namespace, console: Console) -> None:
    """Tables of what is finished, and the JSON file of the sweep."""
    targets, groups, rates = _finished(options)
    print_report(groups, targets, console)
    console.print(f"every number: {write_results(options.sweep, groups, targets, rates)}")


def plot(options: argparse.Namespace, console: Console) -> None:
    targets, groups, _ = _finished(options)
    for path in plot_sweep(options.sweep, groups, targets):
        console.print(str(path))


def _finished(options: argparse.Namespace) -> tuple[sweeps.Targets, list[Group], list[Group]]:
    """The targets, the finished reported runs of a sweep, and those by which its learning rates were chosen."""
    folder, targets = Folder(options.folder), sweeps.read_targets()
    jobs: dict[Job, Job] = {}
    for job in _selected(sweeps.jobs_to_report(options.sweep), options):
        with contextlib.suppress(LookupError):  # no pace yet: so no run either
            found = paces.with_pace(job, folder, targets)
            jobs.setdefault(replace(found, budget=0), found)  # of a run with two budgets the one named first
    groups = groups_of(list(jobs.values()), folder)
    if not groups:
        raise UserError(f"no run of {options.sweep} is finished in {options.folder}; python -m bench.learn run first")
    choosing = paces.choosing_jobs_of(options.sweep, folder, targets) if options.sweep in ("main", "others") else []
    return targets, groups, groups_of(choosing, folder)
