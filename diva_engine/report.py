"""What a run knows of its questions: levels, pass rates, and what each kind of variant did to accuracy.

python -m diva_engine.report --run runs/diva_seed1                        a summary of the newest checkpoint
python -m diva_engine.report --run runs/diva_seed1 --ledger out.parquet   and every question's row (or csv, json, jsonl)

A ledger file starts another run with difficulty.warm_start=out.parquet.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from diva_engine.algorithm.difficulty import DifficultyLedger
from diva_engine.algorithm.variant_effects import VariantEffects
from diva_engine.config import DifficultyConfig
from diva_engine.records import UserError
from diva_engine.trainer.checkpoint import find_checkpoint, load_trainer_state
from diva_engine.trainer.ledger_files import Row, ledger_rows, write_ledger

LEVELS = range(1, 10)
BAR_LETTERS = 40


def main(arguments: Sequence[str] | None = None) -> int:
    options = read_arguments(arguments)
    console = Console(highlight=False, markup=False, soft_wrap=True)  # ids and paths as they stand
    try:
        checkpoint = find_checkpoint(options.checkpoint, Path(options.run))
        ledger = DifficultyLedger(DifficultyConfig())
        ledger.load_state_dict(load_trainer_state(checkpoint)["ledger"])
        rows = ledger_rows(ledger)
        print_summary(f"{options.run}, {checkpoint.name}", rows, options.slowest, console)
        print_effects(ledger.effects, console)
        if options.ledger:
            write_ledger(rows, Path(options.ledger))
            console.print(f"{len(rows)} questions written to {options.ledger}")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def read_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m diva_engine.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", required=True, help="folder of the run")
    parser.add_argument("--checkpoint", default="latest", help="a global_step_N folder; the run's newest unless given")
    parser.add_argument("--ledger", default="", help="file for every question's row: .parquet, .csv, .json or .jsonl")
    parser.add_argument("--slowest", type=int, default=5, help="how many of the questions that do not move are shown")
    return parser.parse_args(arguments)


def print_summary(title: str, rows: Sequence[Row], num_slowest: int, console: Console) -> None:
    """How many questions stand at each level, how many are dead or solved, and which do not move."""
    met = [row for row in rows if row["visits"]]
    console.print(f"{title}: {len(rows)} questions in the ledger, {len(met)} of them visited")
    if not met:
        return
    counts = Counter(round(row["difficulty"]) for row in rows)
    most = max(counts.values())
    console.print("\nlevel  questions")
    for level in LEVELS:
        bar = "#" * round(BAR_LETTERS * counts[level] / most)
        console.print(f"{level:5}  {counts[level]:9}  {bar}")
    last = [row["last_accuracy"] for row in met if row["last_accuracy"] is not None]
    rates = [row["pass_rate"] for row in met]
    console.print(f"\ndead at the last visit    {_share(sum(a == 0 for a in last), len(last))}")
    console.print(f"solved at the last visit  {_share(sum(a == 1 for a in last), len(last))}")
    console.print(f"mean running pass rate    {sum(rates) / len(rates):.1%}")
    slowest = slowest_movers(met, num_slowest)
    if slowest:
        console.print("\nslowest movers: visited often, still rarely right")
        table = _table("id", "level", "pass rate", "visits", "last step", "hint steps")
        for row in slowest:
            last_step = "-" if row["last_step"] < 0 else str(row["last_step"] + 1)
            numbers = (f"{row['difficulty']:.1f}", f"{row['pass_rate']:.1%}", str(row["visits"]), last_step)
            table.add_row(row["id"], *numbers, str(row["hint_steps"]))
        console.print(table)


def slowest_movers(met: Sequence[Row], count: int) -> list[Row]:
    """The questions of the lowest running pass rates after at least two visits; of equal ones those visited most."""
    often = [row for row in met if row["visits"] > 1 and row["pass_rate"] < 0.5]
    return sorted(often, key=lambda row: (row["pass_rate"], -row["visits"], row["id"]))[:count]


def print_effects(effects: VariantEffects, console: Console) -> None:
    """What each kind and strength of variant did to accuracy, against the same question's original."""
    rows = effects.table()
    if not rows:
        return
    console.print("\naccuracy of a variant minus that of its question's original, same step")
    table = _table("kind", "strength", "effect", "std error", "pairs")
    for kind, strength, effect in rows:
        error = "-" if effect.count < 2 else f"{effect.std_error:.1%}"
        table.add_row(kind, str(strength), f"{effect.mean:+.1%}", error, str(effect.count))
    console.print(table)


def _share(part: int, whole: int) -> str:
    return f"{part / max(1, whole):.1%} ({part} of {whole})"


def _table(first: str, *others: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column(first)
    for name in others:
        table.add_column(name, justify="right")
    return table


if __name__ == "__main__":
    sys.exit(main())
