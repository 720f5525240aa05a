"""Where a run's numbers go: metrics.jsonl, rollouts.jsonl, TensorBoard, W&B, summary.json."""

from __future__ import annotations

import difflib
import importlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

from diva_engine.records import ScoredGroup, UserError
from diva_engine.trainer.json_lines import JsonLines, to_json

LOGGERS = ("console", "file", "tensorboard", "wandb")
KEPT_FROM_EARLIER_RUNS = ("metrics.jsonl", "rollouts.jsonl", "tensorboard")


class MetricsLogger:
    """Writes a run's metrics into its folder, and to the services that `loggers` names.

    `file`: metrics.jsonl (one object a call of `log`) and rollouts.jsonl. `tensorboard`: the folder tensorboard.
    `wandb`: Weights & Biases, imported only then. `console` is the Console's. summary.json is written whenever
    `loggers` is not empty; give every process but the first none at all.

    Files open at the first row. A new run in the folder of an earlier one moves that one's files to metrics.1.jsonl and
    so on; a resumed run calls `resume` first and goes on in them.
    """

    def __init__(
        self,
        run_dir: Path,
        loggers: Sequence[str] = ("console", "file", "tensorboard"),
        *,
        project_name: str = "diva_engine",
        experiment_name: str = "",
    ) -> None:
        for name in loggers:
            if name not in LOGGERS:
                nearest = difflib.get_close_matches(name, LOGGERS, n=1, cutoff=0.0)[0]
                raise UserError(f"trainer.logger: {name} is not a logger; did you mean {nearest}?")
        self.run_dir = Path(run_dir)
        self._loggers = frozenset(loggers)
        self._names = {"project": project_name, "name": experiment_name or self.run_dir.name}
        self._wandb_module: Any = _import_wandb() if "wandb" in self._loggers else None
        self._resumed_step: int | None = None
        self._is_open = False
        self._metrics = JsonLines(self.run_dir / "metrics.jsonl")
        self._rollouts = JsonLines(self.run_dir / "rollouts.jsonl")
        self._tensorboard: Any = None
        self._wandb: Any = None

    def resume(self, step: int) -> None:
        """Go on after `step`: rows of later steps, which the resumed run writes again, are cut."""
        self._resumed_step = step
        if "file" in self._loggers:
            self._metrics.cut_after(step)
            self._rollouts.cut_after(step)

    def sync(self) -> None:
        """Has the rows so far on the disk, so that they outlive whatever a checkpoint outlives."""
        self._metrics.sync()
        self._rollouts.sync()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """One row of numbers for a step. Values that are not finite are written as null."""
        self._open()
        numbers = {name: float(value) for name, value in metrics.items()}
        if "file" in self._loggers:
            self._metrics.append({"step": step, **numbers})
        if self._tensorboard is not None:
            for name, value in numbers.items():
                self._tensorboard.add_scalar(name, value, step)
            self._tensorboard.flush()
        if self._wandb is not None:
            self._wandb.log(numbers, step=step)

    def log_rollouts(
        self, step: int, groups: Sequence[ScoredGroup], advantages: Sequence[float], draw: Random, count: int
    ) -> None:
        """`count` of the step's rollouts, drawn by `draw`, for a person to read; one advantage a rollout."""
        rollouts = [(group, i) for group in groups for i in range(len(group.rollouts))]
        for number in sorted(draw.sample(range(len(rollouts)), min(count, len(rollouts)))):
            self.log_rollout(step, *rollouts[number], advantages[number])

    def log_rollout(self, step: int, group: ScoredGroup, index: int, advantage: float) -> None:
        """One rollout of a group, as a row that a person can read."""
        if "file" not in self._loggers:
            return
        self._open()
        variant, rollout, score = group.variant, group.rollouts[index], group.scores[index]
        self._rollouts.append(
            {
                "step": step,
                "problem_id": variant.problem.id,
                "variant": variant.index,
                "kind": variant.kind,
                "difficulty": variant.difficulty,
                "question": variant.text,
                "answer": variant.problem.answer,
                "prefix": variant.answer_prefix,
                "text": rollout.text,
                "reward": score.reward,
                "accuracy": score.accuracy,
                "format": score.format,
                "advantage": float(advantage),
                "num_tokens": len(rollout.token_ids),
                "finish_reason": rollout.finish_reason,
            }
        )

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """summary.json, whole or not at all."""
        if not self._loggers:
            return
        self.run_dir.mkdir(parents=True, exist_ok=True)
        temporary = self.run_dir / "summary.json.tmp"
        with temporary.open("w", encoding="utf-8") as file:
            file.write(to_json(summary) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self.run_dir / "summary.json")
        if self._wandb is not None:
            self._wandb.summary.update(dict(summary))

    def close(self) -> None:
        self._metrics.close()
        self._rollouts.close()
        if self._tensorboard is not None:
            self._tensorboard.close()
            self._tensorboard = None
        if self._wandb is not None:
            self._wandb.finish()
            self._wandb = None

    def _open(self) -> None:
        if self._is_open:
            return
        self._is_open = True
        if self._loggers & {"file", "tensorboard"}:
            self.run_dir.mkdir(parents=True, exist_ok=True)
            if self._resumed_step is None:
                move_earlier_run(self.run_dir)
        if "tensorboard" in self._loggers:
            self._tensorboard = _open_tensorboard(self.run_dir / "tensorboard", self._resumed_step)
        if self._wandb_module is not None:
            self._wandb = self._open_wandb()

    def _open_wandb(self) -> Any:
        """A new run of W&B, or the one that a resumed run began. W&B keeps its first number of a repeated step."""
        id_file = self.run_dir / "wandb_id"
        is_known = self._resumed_step is not None and id_file.exists()
        run_id = id_file.read_text().strip() if is_known else None
        self.run_dir.mkdir(parents=True, exist_ok=True)
        run = self._wandb_module.init(dir=str(self.run_dir), id=run_id, resume="allow", **self._names)
        id_file.write_text(f"{run.id}\n")
        return run


def move_earlier_run(run_dir: Path) -> None:
    """Give the metric files of an earlier run in this folder the first free number."""
    found = [run_dir / name for name in KEPT_FROM_EARLIER_RUNS if (run_dir / name).exists()]
    number = 1
    while any(_numbered(path, number).exists() for path in found):
        number += 1
    for path in found:
        path.rename(_numbered(path, number))


def _numbered(path: Path, number: int) -> Path:
    return path.with_name(f"{path.stem}.{number}{path.suffix}")


def _open_tensorboard(folder: Path, resumed_step: int | None) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UserError(
            f"trainer.logger names tensorboard, which cannot be imported ({error}); pip install tensorboard"
        ) from None
    return SummaryWriter(str(folder), purge_step=None if resumed_step is None else resumed_step + 1)


def _import_wandb() -> Any:
    try:
        return importlib.import_module("wandb")
    except ImportError as error:
        raise UserError(
            f"trainer.logger names wandb, which cannot be imported ({error}); pip install wandb, or leave it out"
        ) from None
