"""The kernel benchmarks: `python -m bench` runs all, `python -m bench group_stats` one op.

Further words go to pytest: `--benchmark-timer=time.process_time` counts processor time instead of wall time, on a
machine that is busy with other work.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parent


def main(words: list[str]) -> int:
    options = [word for word in words if word.startswith("-")]
    files = [str(FOLDER / f"bench_{word}.py") for word in words if not word.startswith("-")]
    files = files or [str(path) for path in sorted(FOLDER.glob("bench_*.py"))]
    common = ["--benchmark-only", "--benchmark-columns=median", "--benchmark-quiet", "-q"]
    return int(pytest.main([*files, *common, *options]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
