"""Algorithms side by side: the same seeds, the same held-out questions, as many responses a step where a plan allows
it.

    python -m bench.compare --algorithms grpo,diva --seeds 0,1,2 --target 0.6 config=examples/tiles_cpu.yaml

Each run is `python -m diva_engine.train` in a process of its own. What is printed and written: steps and seconds
until held-out greedy accuracy reaches the target (">n" where it did not), accuracy before, after and by level, the
share of dead original questions; median and every seed. DIVA's variants are paid for by asking fewer questions; what
DAPO's draws and Hint-GRPO's ladder cost on top stands in the table.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from diva_engine.algorithm.recipes import recipe_defaults
from diva_engine.settings import load_config


@dataclass(frozen=True)
class Outcome:
    """What one run came to."""

    algorithm: str
    seed: int
    responses_per_step: float
    accuracy_before: float
    accuracy_after: float
    steps_to_target: int | None  # None: not reached
    seconds_to_target: float | None
    steps: int
    wall_s: float
    cpu_s: float
    dead_groups: float  # mean share over the run
    utilisation: float
    accuracy_by: dict[str, float]


def main(arguments: Sequence[str] | None = None) -> int:
    options, settings = parse(arguments)
    outcomes = []
    for seed in options.seeds.split(","):
        for algorithm in options.algorithms.split(","):
            run_dir = Path(options.output) / f"{algorithm}_seed{seed}"
            if not (run_dir / "summary.json").exists():
                shutil.rmtree(run_dir, ignore_errors=True)  # what an interrupted comparison left
                launch(algorithm, int(seed), run_dir, settings)
            outcomes.append(read_outcome(run_dir, options.target))
    print_table(outcomes, options.target)
    report = Path(options.output) / "compare.json"
    report.write_text(json.dumps([asdict(outcome) for outcome in outcomes], indent=2) + "\n", encoding="utf-8")
    print(f"every number: {report}")
    return 0


def parse(arguments: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(prog="python -m bench.compare", description=__doc__)
    parser.add_argument("--algorithms", default="grpo,diva")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--target", type=float, default=0.6, help="held-out greedy accuracy to reach")
    parser.add_argument("--output", default="runs/compare", help="folder of the runs; finished ones are not run again")
    options, settings = parser.parse_known_args(arguments)
    return options, settings or ["config=examples/tiles_cpu.yaml"]


def launch(algorithm: str, seed: int, run_dir: Path, settings: Sequence[str]) -> None:
    """One training run with as many responses a step as the settings give GRPO."""
    config = load_config([*settings, f"algorithm={algorithm}"], recipe_defaults)
    prompts = 1 + (config.variants.num if algorithm == "diva" else 0)
    words = [
        *settings,
        f"algorithm={algorithm}",
        f"seed={seed}",
        f"data.rollout_batch_size={max(1, config.data.rollout_batch_size // prompts)}",
        f"trainer.save_checkpoint_path={run_dir}",
    ]
    subprocess.run([sys.executable, "-m", "diva_engine.train", *words], check=True)


def read_outcome(run_dir: Path, target: float) -> Outcome:
    summary = json.loads((run_dir / "summary.json").read_text(encoding="utf-8"))
    if summary["accuracy_before"] is None:
        raise SystemExit(f"{run_dir} has no held-out accuracy before training; set data.val_files and val_before_train")
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    steps = [line for line in lines if "step/rollouts" in line]
    checks = [line for line in lines if "val/accuracy" in line]
    reached = next((line["step"] for line in checks if line["step"] > 0 and line["val/accuracy"] >= target), None)
    prefix = "val/accuracy/"
    return Outcome(
        algorithm=summary["algorithm"],
        seed=summary["seed"],
        responses_per_step=summary["responses"] / summary["steps"],
        accuracy_before=summary["accuracy_before"],
        accuracy_after=summary["accuracy_after"],
        steps_to_target=reached,
        seconds_to_target=None if reached is None else sum(line["time/step_s"] for line in steps[:reached]),
        steps=summary["steps"],
        wall_s=summary["wall_s"],
        cpu_s=summary["cpu_s"],
        dead_groups=statistics.mean(line["originals/dead"] for line in steps),
        utilisation=statistics.mean(line["questions/utilisation"] for line in steps),
        accuracy_by={name.removeprefix(prefix): value for name, value in checks[-1].items() if name.startswith(prefix)},
    )


def print_table(outcomes: Sequence[Outcome], target: float) -> None:
    table = Table(title=f"steps and seconds to held-out accuracy {target:.0%}: median [every seed]")
    for heading in (
        "algorithm",
        "responses/step",
        "before",
        "after",
        "steps to target",
        "s to target",
        "s/step",
        "dead",
        "used",
    ):
        table.add_column(heading, justify="right")
    for algorithm in dict.fromkeys(outcome.algorithm for outcome in outcomes):
        table.add_row(algorithm, *_row([outcome for outcome in outcomes if outcome.algorithm == algorithm]))
    console = Console(width=200)
    console.print(table)
    for outcome in outcomes:
        levels = ", ".join(f"{name} {value:.0%}" for name, value in outcome.accuracy_by.items())
        console.print(f"{outcome.algorithm} seed {outcome.seed}: {levels}")


def _row(runs: Sequence[Outcome]) -> list[str]:
    def share(values: Sequence[float]) -> str:
        every = " ".join(f"{100 * value:.1f}" for value in values)
        return f"{100 * statistics.median(values):.1f} [{every}]"

    return [
        f"{statistics.median(run.responses_per_step for run in runs):g}",
        share([run.accuracy_before for run in runs]),
        share([run.accuracy_after for run in runs]),
        _censored([run.steps_to_target for run in runs], [run.steps for run in runs]),
        _censored([run.seconds_to_target for run in runs], [run.wall_s for run in runs]),
        f"{statistics.median(run.wall_s / run.steps for run in runs):.2f}",
        share([run.dead_groups for run in runs]),
        share([run.utilisation for run in runs]),
    ]


def _censored(values: Sequence[Any], limits: Sequence[float]) -> str:
    """Median over the seeds, a run that never arrived counting as its last value and marked by ">"."""
    shown = [f">{limit:.0f}" if value is None else f"{value:.0f}" for value, limit in zip(values, limits, strict=True)]
    median = statistics.median(limit if value is None else value for value, limit in zip(values, limits, strict=True))
    return f"{'>=' if None in values else ''}{median:.0f} [{' '.join(shown)}]"


if __name__ == "__main__":
    sys.exit(main())
