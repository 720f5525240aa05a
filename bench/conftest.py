"""After the benchmarks: our table and JSON in place of pytest-benchmark's table."""

from __future__ import annotations

from typing import Any

from bench import report


def pytest_terminal_summary(terminalreporter: Any, config: Any) -> None:
    session = getattr(config, "_benchmarksession", None)
    measured = [] if session is None else [b for b in session.benchmarks if b and "contender" in b.extra_info]
    if measured:
        path = report.publish(measured, timer=str(config.getoption("benchmark_timer")))
        terminalreporter.write_line(f"every number: {path}")
