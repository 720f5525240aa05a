"""Metric files: what is written, what a resumed run cuts, and what a wrong setting says."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from diva_engine.records import Problem, Prompt, Request, Rollout, Score, ScoredGroup, UserError, Variant
from diva_engine.trainer.json_lines import JsonLines
from diva_engine.trainer.metric_names import FAMILIES, METRICS, describe, markdown
from diva_engine.trainer.metrics import MetricsLogger


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def scored_group() -> ScoredGroup:
    problem = Problem(id="q7", text="2 + 2?", answer="4")
    variant = Variant(problem, 1, "paraphrase", "What is 2 + 2?", difficulty=5.5)
    prompt = Prompt((1, 2), torch.zeros(3, 2, dtype=torch.int64))
    rollout = Rollout((5, 6, 7), (-0.1, -0.2, -0.3), "stop", "\\boxed{4} ✓ \ud800", policy_version=3)
    return ScoredGroup(Request(variant, 1), prompt, (rollout,), (Score(0.9, 1.0, 0.0),))


def test_one_json_object_a_step_and_no_nan_in_it(tmp_path: Path) -> None:
    logger = MetricsLogger(tmp_path / "run", ("file",))
    logger.log(1, {"reward/mean": 0.25, "actor/loss": math.nan})
    logger.log(2, {"reward/mean": torch.tensor(0.5), "actor/loss": -math.inf})  # type: ignore[dict-item]
    assert rows(tmp_path / "run/metrics.jsonl") == [
        {"step": 1, "reward/mean": 0.25, "actor/loss": None},
        {"step": 2, "reward/mean": 0.5, "actor/loss": None},
    ]
    logger.close()


def test_a_rollout_row_says_what_was_asked_answered_and_earned(tmp_path: Path) -> None:
    logger = MetricsLogger(tmp_path, ("file",))
    logger.log_rollout(4, scored_group(), 0, advantage=1.25)
    logger.close()
    (row,) = rows(tmp_path / "rollouts.jsonl")
    expected = {"step": 4, "problem_id": "q7", "variant": 1, "kind": "paraphrase", "difficulty": 5.5, "answer": "4",
                "question": "What is 2 + 2?", "text": "\\boxed{4} ✓ ?", "reward": 0.9, "accuracy": 1.0, "format": 0.0,
                "advantage": 1.25, "num_tokens": 3, "finish_reason": "stop", "prefix": ""}  # fmt: skip
    assert row == expected


def test_resuming_cuts_later_steps_and_a_torn_last_line(tmp_path: Path) -> None:
    first = MetricsLogger(tmp_path, ("file",))
    for step in range(1, 6):
        first.log(step, {"reward/mean": step / 10})
        first.log_rollout(step, scored_group(), 0, advantage=0.0)
    first.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "reward/me')
    resumed = MetricsLogger(tmp_path, ("file",))
    resumed.resume(3)
    resumed.log(4, {"reward/mean": 7.0})
    resumed.close()
    assert [row["step"] for row in rows(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4]
    assert [row["step"] for row in rows(tmp_path / "rollouts.jsonl")] == [1, 2, 3]
    assert rows(tmp_path / "metrics.jsonl")[-1]["reward/mean"] == 7.0


def test_a_new_run_in_an_old_folder_keeps_the_old_files(tmp_path: Path) -> None:
    for value in (1.0, 2.0, 3.0):
        logger = MetricsLogger(tmp_path, ("file",))
        logger.log(1, {"reward/mean": value})
        logger.close()
    found = [
        rows(tmp_path / name)[0]["reward/mean"] for name in ("metrics.1.jsonl", "metrics.2.jsonl", "metrics.jsonl")
    ]
    assert found == [1.0, 2.0, 3.0]


def test_tensorboard_holds_the_numbers_and_a_resumed_run_purges(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    first = MetricsLogger(tmp_path, ("tensorboard",))
    for step in (1, 2, 3):
        first.log(step, {"reward/mean": step / 10})
    first.close()
    resumed = MetricsLogger(tmp_path, ("tensorboard",))
    resumed.resume(1)
    resumed.log(2, {"reward/mean": 9.0})
    resumed.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, round(event.value, 3)) for event in events.Scalars("reward/mean")] == [(1, 0.1), (2, 9.0)]


def test_the_summary_is_written_whole(tmp_path: Path) -> None:
    logger = MetricsLogger(tmp_path / "run", ("console",))
    logger.write_summary({"accuracy_after": 0.5, "seed": 1, "tokens_per_s": math.inf})
    assert json.loads((tmp_path / "run/summary.json").read_text()) == {
        "accuracy_after": 0.5,
        "seed": 1,
        "tokens_per_s": None,
    }
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["summary.json"]


def test_without_loggers_nothing_is_written(tmp_path: Path) -> None:
    logger = MetricsLogger(tmp_path / "run", ())
    logger.log(1, {"reward/mean": 1.0})
    logger.log_rollout(1, scored_group(), 0, advantage=0.0)
    logger.write_summary({"seed": 1})
    logger.close()
    assert not (tmp_path / "run").exists()


def test_wandb_gets_the_numbers_and_a_resumed_run_goes_on_in_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    first = MetricsLogger(tmp_path, ("wandb",), project_name="p", experiment_name="e")
    first.log(1, {"reward/mean": 0.5})
    run_id = wandb.run.id
    first.close()
    resumed = MetricsLogger(tmp_path, ("wandb",))
    resumed.resume(1)
    resumed.log(2, {"reward/mean": 0.75})
    assert wandb.run.id == run_id
    resumed.close()


def test_a_misspelt_logger_and_a_missing_package_say_the_mend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"trainer\.logger: tensorbord is not a logger; did you mean tensorboard\?"):
        MetricsLogger(tmp_path, ("tensorbord",))
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"names wandb, which cannot be imported .*pip install wandb"):
        MetricsLogger(tmp_path, ("wandb",))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_costs_the_line_and_not_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    lines = JsonLines(tmp_path / "metrics.jsonl")
    lines.append({"step": 1})
    lines.append({"step": 2})
    lines.close()
    assert capsys.readouterr().err.count("was not written: [Errno 28] No space left on device; the run goes on") == 1


def test_the_table_of_metrics_explains_every_name_and_family() -> None:
    assert all(metric.meaning for metric in [*METRICS.values(), *FAMILIES.values()])
    assert describe("groups/dead") is METRICS["groups/dead"]
    assert describe("val/accuracy/difficulty=3") is FAMILIES["val/accuracy/"]
    assert describe("reward/overlong") is FAMILIES["reward/"]
    assert describe("somebody/else") is None


def test_the_documentation_is_the_table() -> None:
    page = Path(__file__).parents[2] / "docs/metrics.md"
    assert page.read_text().rstrip() == markdown(), (
        "write it anew: python -m diva_engine.trainer.metric_names > docs/metrics.md"
    )
