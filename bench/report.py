"""From pytest-benchmark's measurements to one table and one JSON file."""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench import harness

RESULTS = Path(__file__).resolve().parent / "results"


@dataclass(frozen=True)
class Row:
    """One contender at one size."""

    op: str
    size: str
    contender: str
    median_s: float
    iqr_s: float
    min_s: float
    rounds: int
    ratio: float  # its median over ours: above 1, we are faster
    bytes_per_s: float  # of the least that must move
    copy_share: float  # of what a plain copy reaches
    extra: Mapping[str, Any]


def rows_of(measured: Sequence[Any], copy_bytes_per_second: float) -> list[Row]:
    """Rows from pytest-benchmark's sessions, in their order."""
    ours = {
        (m.extra_info["op"], m.extra_info["size"]): m.stats.median / m.extra_info["calls"]
        for m in measured
        if m.extra_info["contender"] == harness.OURS
    }
    return [_row(m, ours.get((m.extra_info["op"], m.extra_info["size"])), copy_bytes_per_second) for m in measured]


def _row(measured: Any, our_median: float | None, copy_bytes_per_second: float) -> Row:
    extra = dict(measured.extra_info)
    op, size, contender = extra.pop("op"), extra.pop("size"), extra.pop("contender")
    moved, calls = extra.pop("bytes_moved"), extra.pop("calls")
    stats = measured.stats
    median = stats.median / calls
    return Row(
        op=op,
        size=size,
        contender=contender,
        median_s=median,
        iqr_s=stats.iqr / calls,
        min_s=stats.min / calls,
        rounds=stats.rounds,
        ratio=median / our_median if our_median else float("nan"),
        bytes_per_s=moved / median,
        copy_share=moved / median / copy_bytes_per_second,
        extra=extra,
    )


def table_of(rows: Sequence[Row], environment: Mapping[str, Any], copy_bytes_per_second: float) -> Table:
    title = (
        f"{environment['device']}, {environment['threads']} threads, torch {environment['packages'].get('torch')}, "
        f"{environment['timer']}, copy {copy_bytes_per_second / 1e9:.1f} GB/s"
    )
    table = Table(title=title)
    for heading in ("op", "size", "contender"):
        table.add_column(heading)
    for heading in ("median", "spread (IQR)", "times ours", "GB/s", "of copy"):
        table.add_column(heading, justify="right")
    previous = None
    for row in rows:
        if previous not in (None, (row.op, row.size)):
            table.add_section()
        previous = (row.op, row.size)
        speed = (f"{row.ratio:.2f}x", f"{row.bytes_per_s / 1e9:.2f}", f"{row.copy_share:.1%}")
        table.add_row(row.op, row.size, row.contender, _duration(row.median_s), _duration(row.iqr_s), *speed)
    return table


def _duration(seconds: float) -> str:
    if seconds < 1e-3:
        return f"{seconds * 1e6:.1f} us"
    return f"{seconds * 1e3:.2f} ms" if seconds < 1 else f"{seconds:.2f} s"


def publish(measured: Sequence[Any], timer: str) -> Path:
    """Prints the table and writes every number to bench/results/."""
    environment, copy = {**harness.environment(), "timer": timer}, harness.copy_bytes_per_second()
    rows = rows_of(measured, copy)
    console = Console(width=150)
    console.print(table_of(rows, environment, copy))
    if environment["not_installed"]:
        console.print(f"not installed, so not among the contenders: {', '.join(environment['not_installed'])}")
    slug = re.sub(r"\W+", "-", environment["device"]).strip("-").lower()
    # "policy_loss, GSPO with KL" is a case of policy_loss; a chain of several ops stands with the others of its file.
    ops = "-".join(dict.fromkeys(row.op.split(",")[0] for row in rows if " " not in row.op.split(",")[0]))
    path = RESULTS / f"{slug}-{ops if len(ops) < 60 else 'all'}.json"
    path.parent.mkdir(exist_ok=True)
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    results = {"time": now, "environment": environment, "copy_bytes_per_s": copy, "rows": [asdict(row) for row in rows]}
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return path
