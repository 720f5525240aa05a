"""Looks at the machine and the installation and says what works, what does not, and the mend.

python -m diva_engine.doctor                   one line a thing, the mend below what needs one
python -m diva_engine.doctor --json            the same for programs
python -m diva_engine.doctor --run-dir /data   where the runs will lie (its disk is looked at)

Exit code: 0 nothing is broken, 1 something is; with --strict a warning counts too.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from diva_engine.doctor.finding import Finding, guarded
from diva_engine.doctor.libraries import check_libraries
from diva_engine.doctor.machine import check_machine

COLOURS = {"ok": "\033[32m", "warn": "\033[33m", "broken": "\033[31m"}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "python -m diva_engine.doctor", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print a JSON object")
    parser.add_argument("--strict", action="store_true", help="exit code 1 for warnings too")
    parser.add_argument("--run-dir", type=Path, default=Path("runs"), help="folder of the runs")
    options = parser.parse_args(arguments)
    findings = [*check_machine(options.run_dir), *guarded("libraries", check_libraries)]
    verdicts = [finding.verdict for finding in findings]
    is_sick = "broken" in verdicts or (options.strict and "warn" in verdicts)
    if options.json:
        verdict = next((verdict for verdict in ("broken", "warn") if verdict in verdicts), "ok")
        rows = [dataclasses.asdict(finding) for finding in findings]
        print(json.dumps({"verdict": verdict, "findings": rows}, indent=2))
    else:
        print(described(findings, in_colour=sys.stdout.isatty()))
    return int(is_sick)


def described(findings: Sequence[Finding], *, in_colour: bool) -> str:
    width = max(len(finding.name) for finding in findings)
    lines = []
    for finding in findings:
        verdict = f"{finding.verdict:6}"
        lines.append(f"{COLOURS[finding.verdict]}{verdict}\033[0m" if in_colour else verdict)
        lines[-1] += f"  {finding.name:{width}}  {finding.value}"
        if finding.mend:
            lines.append(f"{'':6}  {'':{width}}  -> {finding.mend}")
    counts = {verdict: sum(finding.verdict == verdict for finding in findings) for verdict in ("broken", "warn")}
    words = [f"{counts['broken']} broken", f"{counts['warn']} to look at"]
    sick = [word for word in words if not word.startswith("0 ")]
    return "\n".join([*lines, f"\n{', '.join(sick)}" if sick else "\nall is well"])


if __name__ == "__main__":
    sys.exit(main())
