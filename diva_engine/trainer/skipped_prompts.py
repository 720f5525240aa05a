"""skipped_prompts.txt: why prompts could not be posed, a line each, by the step or validation that asked for them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from diva_engine.trainer.checkpoint_files import replace_file

NAME = "skipped_prompts.txt"
WHEN = re.compile(r"(?:step|validation) (\d+): ")


def note_skipped(run_dir: Path, when: str, reasons: Sequence[str]) -> None:
    """Appends the reasons; `when` is "step N" or "validation N"."""
    if reasons:
        with (run_dir / NAME).open("a", encoding="utf-8") as file:
            file.writelines(f"{when}: {reason}\n" for reason in reasons)


def cut_after(run_dir: Path, step: int) -> None:
    """Drops the lines of steps later than `step`, which a resumed run writes again."""
    path = run_dir / NAME
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    found = [(line, WHEN.match(line)) for line in lines if line.endswith("\n")]
    replace_file(path, "".join(line for line, when in found if when is None or int(when[1]) <= step))
