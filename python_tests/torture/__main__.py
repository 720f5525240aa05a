"""Everything that is done to a run to lose it, by one command and by the clock, with a table of what came of it.

    python -m python_tests.torture --minutes 20 --seed 0        (make torture)

Kills, damaged checkpoints, a full disk, broken steps, hostile rewards, dying engines, signals, hostile files, pictures
and settings, lost ranks. Each part has a share of the time and begins no new trial when that is used (one is always
tried); what a part leaves goes to those after it. The seed decides what is tried where time does not suffice for all.
The exit code is 1 if anything was lost. The table goes to runs/torture/<time>_seed<seed>.json too, and what the trials
print to the file beside it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from python_tests.torture.kills import kill_many
from python_tests.torture.parts import KILLS, PARTS, Part
from python_tests.torture.trials import Outcome, try_tests

OUTPUT = Path("runs/torture")
MOST_KILLS, FEWEST_KILLS = 30, 3


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20.0, help="no trial begins later")
    parser.add_argument("--seed", type=int, default=0, help="of moments, damage, and what is tried first")
    options = parser.parse_args(arguments)
    began = time.monotonic()
    OUTPUT.mkdir(parents=True, exist_ok=True)
    place = OUTPUT / f"{time.strftime('%Y%m%d-%H%M%S')}_seed{options.seed}.json"
    outcomes = try_all(began + 60 * options.minutes, options.seed, place.with_suffix(".txt"))
    report = {**vars(options), **circumstances(), "seconds": time.monotonic() - began}
    place.write_text(json.dumps({**report, "parts": [asdict(one) for one in outcomes]}, indent=1) + "\n")
    print_table(outcomes)
    print(f"{report['seconds']:.0f} s; {place}")
    return 1 if any(one.lost or not one.tried + one.skipped for one in outcomes) else 0


def try_all(end: float, seed: int, log: Path) -> list[Outcome]:
    """Every part in turn, each within its share of what is left until `end` (of time.monotonic)."""
    outcomes: list[Outcome] = []
    for number, part in enumerate(PARTS):
        left = max(end - time.monotonic(), 0.0)
        share = left * part.weight / sum(one.weight for one in PARTS[number:])
        print(f"{part.name}: {share:.0f} s at most", flush=True)
        with log.open("a") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
            outcomes.append((try_kills if part is KILLS else try_tests)(part, share, seed))
    return outcomes


def try_kills(part: Part, seconds: float, seed: int) -> Outcome:
    """Trainers killed at drawn moments and resumed, until they finish; a run that differs from the unbroken is lost."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        report = kill_many(MOST_KILLS, seed, Path(folder), print, fewest=FEWEST_KILLS, until=began + seconds)
    print(report)
    tried = report.kills.total()
    outcome = Outcome(
        part.name, tried, left=MOST_KILLS - tried, lost=report.lost, kinds=dict(sorted(report.kills.items()))
    )
    outcome.seconds = time.monotonic() - began
    return outcome


def circumstances() -> dict[str, str | int | None]:
    command = ["git", "rev-parse", "--short", "HEAD"]
    try:
        commit = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        commit = "unknown"
    return {"commit": commit, "torch": torch.__version__, "python": sys.version.split()[0], "cores": os.cpu_count()}


def print_table(outcomes: Sequence[Outcome]) -> None:
    table = Table("tried", "trials", "survived", "lost", "skipped", "no time for", "seconds")
    for one in outcomes:
        numbers = (one.tried, one.tried - len(one.lost), len(one.lost), one.skipped, one.left)
        table.add_row(one.name, *map(str, numbers), f"{one.seconds:.0f}")
    console = Console(width=120)
    console.print(table)
    for one in outcomes:
        if one.kinds:
            print(f"{one.name}: {', '.join(f'{count} {kind}' for kind, count in one.kinds.items())}")
        for reason, count in one.reasons.items():
            print(f"{one.name}: {count} skipped, {reason}")
        for loss in one.lost:
            print(f"LOST {one.name}: {loss}")


if __name__ == "__main__":
    sys.exit(main())
