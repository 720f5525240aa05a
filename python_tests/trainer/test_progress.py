"""How far a pass over questions is."""

import io

import pytest
from rich.console import Console

from diva_engine.trainer.progress import progress_over


@pytest.mark.parametrize(("batch", "num_lines"), [(1, 11), (30, 4), (100, 1)])
def test_a_few_lines_where_there_is_no_terminal(batch, num_lines):
    out = io.StringIO()
    with progress_over(100, "answering", Console(file=out)) as advance:
        for start in range(0, 100, batch):
            advance(min(batch, 100 - start))
    lines = out.getvalue().splitlines()
    assert len(lines) == num_lines
    assert lines[0].startswith(f"answering: {batch}/100 questions, ")
    assert lines[-1] == "answering: 100/100 questions, 0 s left"


def test_a_bar_on_a_terminal():
    out = io.StringIO()
    with progress_over(4, "answering", Console(file=out, force_terminal=True, width=80)) as advance:
        advance(3)
    assert "answering" in out.getvalue()
    assert "3/4" in out.getvalue()
