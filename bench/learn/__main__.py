"""How fast each method learns, at equal rollouts: `python -m bench.learn COMMAND`.

bases      make the models that the regimes begin with (some CPU minutes, once) and measure them
choose     try each method at nine paces (steps, learning rates) on a seed that is not reported
run        the reported runs: main, paces (grpo at every pace), others, ablations, robustness
report     tables, and bench/results/learn-<sweep>.json
plot       curves, difficulty over time, the difficulty-advantage surface

Everything is kept in --folder; a command that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

COMMANDS = ("bases", "choose", "run", "report", "plot")


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    # Before torch is imported, in this process and in its workers: one thread a run, and none that spins.
    os.environ.update(OMP_NUM_THREADS="1", GOMP_SPINCOUNT="0")
    from bench.learn import commands
    from diva_engine.records import UserError

    chosen = getattr(commands, {"run": "run_sweep"}.get(options.command, options.command))
    try:
        chosen(options, Console(width=200, soft_wrap=True))
    except (UserError, LookupError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.learn", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("sweep", nargs="?", default="main", help="main, paces, others, ablations or robustness")
    parser.add_argument("--folder", type=Path, default=Path("runs/learn"), help="where bases and runs lie")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="runs side by side")
    parser.add_argument("--seeds", default="", help="only these of the reported seeds, as 70,71")
    parser.add_argument("--methods", default="", help="only these methods")
    parser.add_argument("--regimes", default="", help="only these regimes")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
