"""The training loop. It runs any recipe and asks none which it is."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diva_engine.algorithm.difficulty import DifficultyLedger
from diva_engine.algorithm.plans import PlanContext
from diva_engine.algorithm.recipes.recipe import Recipe
from diva_engine.config import Config
from diva_engine.data.sampler import QuestionSampler
from diva_engine.policy.model import Policy
from diva_engine.records import Problem, ScoredGroup
from diva_engine.seeds import derive_random
from diva_engine.trainer.checkpoint import save_checkpoint
from diva_engine.trainer.collect import Collected, Collector
from diva_engine.trainer.console import Console
from diva_engine.trainer.metrics import MetricsLogger
from diva_engine.trainer.step_metrics import rollout_metrics
from diva_engine.trainer.stopwatch import Stopwatch
from diva_engine.trainer.update import Updater
from diva_engine.trainer.validate import validate

# What is done to a step's groups between their rewards and their credit: (groups, step) -> (groups, metrics).
Preparation = Callable[[Sequence[ScoredGroup], int], tuple[list[ScoredGroup], dict[str, float]]]


@dataclass
class Progress:
    """How far the run is; part of every checkpoint."""

    step: int = 0
    rollouts: int = 0
    tokens: int = 0
    train_wall_s: float = 0.0
    train_cpu_s: float = 0.0
    accuracy_before: float | None = None
    accuracy_after: float | None = None


@dataclass
class Trainer:
    """The parts of a run, built by the command, and the loop over its steps."""

    config: Config
    recipe: Recipe
    policy: Policy
    train_problems: Sequence[Problem]
    val_problems: Sequence[Problem]
    sampler: QuestionSampler
    collector: Collector
    greedy: Collector  # the same parts, sampling greedily: for held-out accuracy
    updater: Updater
    ledger: DifficultyLedger
    logger: MetricsLogger
    console: Console
    run_dir: Path
    num_steps: int
    preparations: Sequence[Preparation] = ()
    progress: Progress = field(default_factory=Progress)

    def run(self) -> dict[str, Any]:
        """Trains to the last step and returns the summary that `summary.json` holds."""
        settings, progress = self.config.trainer, self.progress
        if progress.step == 0 and settings.val_before_train:
            progress.accuracy_before = self._validate()
        while progress.step < self.num_steps:
            stopwatch = Stopwatch()
            with stopwatch.phase("step"):
                metrics = self._train_step(stopwatch)
            self._advance(metrics, stopwatch)
            is_last = progress.step == self.num_steps
            if is_last or _is_due(progress.step, settings.val_freq):
                progress.accuracy_after = self._validate()
            if is_last or _is_due(progress.step, settings.save_freq):
                self._save()
        return self._finish()

    def _train_step(self, stopwatch: Stopwatch) -> dict[str, float]:
        step = self.progress.step
        problems = [self.train_problems[i] for i in self.sampler.next_batch()]
        level = self.ledger.mean_difficulty(problems)
        context = PlanContext(self.config, self.ledger, step, self._draw_more)
        collected = self.collector.collect(self.recipe.plan(problems, context), step, stopwatch)
        for note in context.notes:
            self.console.note(note)
        trained, prepared = self._prepare(collected.trained, stopwatch)
        with stopwatch.phase("credit"):
            credit = self.recipe.credit(trained, self.config)
        with stopwatch.phase("update"):
            updated = self.updater.update(trained, credit)
        self.ledger.observe(collected.asked, step)
        self.collector.engine.update_weights(step + 1)
        self._log_rollouts(collected, credit.advantage.tolist())
        counters = {f"reward/{name}": float(count) for name, count in self.collector.reward.take_counters().items()}
        return {
            **rollout_metrics(collected.asked),
            **counters,
            **context.metrics,
            **prepared,
            **credit.metrics,
            **updated,
            "difficulty/mean": level,
            "step/skipped_prompts": float(self._note_skipped(self.collector, f"step {step + 1}")),
        }

    def _prepare(self, groups: list[ScoredGroup], stopwatch: Stopwatch) -> tuple[list[ScoredGroup], dict[str, float]]:
        """The step's groups with all that their credit reads."""
        metrics: dict[str, float] = {}
        with stopwatch.phase("prepare"):
            for prepare in self.preparations:
                groups, found = prepare(groups, self.progress.step)
                metrics |= found
        return groups, metrics

    def _note_skipped(self, collector: Collector, when: str) -> int:
        """Writes why prompts could not be posed to skipped_prompts.txt; how many they were."""
        reasons = list(collector.skipped)
        collector.skipped.clear()
        if reasons:
            with (self.run_dir / "skipped_prompts.txt").open("a", encoding="utf-8") as file:
                file.writelines(f"{when}: {reason}\n" for reason in reasons)
            self.console.note(f"prompts that cannot be posed are left out; {self.run_dir}/skipped_prompts.txt says why")
        return len(reasons)

    def _draw_more(self, count: int) -> list[Problem]:
        return [self.train_problems[i] for i in self.sampler.draw_more(count)]

    def _advance(self, metrics: dict[str, float], stopwatch: Stopwatch) -> None:
        """Counts the step and logs it."""
        progress = self.progress
        progress.step += 1
        progress.rollouts += int(metrics["step/rollouts"])
        progress.tokens += int(metrics["step/tokens"])
        progress.train_wall_s += stopwatch.wall_s["step"]
        progress.train_cpu_s += stopwatch.cpu_s["step"]
        metrics |= {
            "throughput/tokens_per_s": metrics["step/tokens"] / stopwatch.wall_s["step"],
            "throughput/rollout_tokens_per_cpu_s": metrics["step/tokens"] / max(stopwatch.cpu_s["rollout"], 1e-9),
            **stopwatch.metrics(),
        }
        self.logger.log(progress.step, metrics)
        self.console.step(progress.step, metrics)

    def _validate(self) -> float | None:
        if not len(self.val_problems):
            return None
        self.console.phase("held-out accuracy")
        result = validate(self.val_problems, self.greedy, batch_size=self.config.worker.rollout.max_batch_rows)
        self.collector.reward.take_counters()  # the next step's counts are of its own answers
        metrics = result.metrics(self.config.trainer.val_by)
        metrics["val/skipped_prompts"] = float(self._note_skipped(self.greedy, f"validation {self.progress.step}"))
        self.logger.log(self.progress.step, metrics)
        self.console.validation(self.progress.step, metrics)
        return result.accuracy

    def _log_rollouts(self, collected: Collected, advantages: Sequence[float]) -> None:
        """A few of the step's rollouts, drawn anew each step, for a person to read."""
        rollouts = [(group, i) for group in collected.trained for i in range(len(group.rollouts))]
        draw = derive_random(self.config.data.seed, "rollouts to log", self.progress.step)
        wanted = min(self.config.trainer.rollouts_to_log, len(rollouts))
        for number in sorted(draw.sample(range(len(rollouts)), wanted)):
            group, i = rollouts[number]
            self.logger.log_rollout(self.progress.step + 1, group, i, advantages[number])

    def _save(self) -> Path:
        self.console.phase("saving")
        return save_checkpoint(self.run_dir, self.progress.step, self.policy, self.state_dict(), self.config)

    def state_dict(self) -> dict[str, Any]:
        return {
            "progress": vars(self.progress).copy(),
            "sampler": self.sampler.state_dict(),
            "ledger": self.ledger.state_dict(),
            "updater": self.updater.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.progress = Progress(**state["progress"])
        self.sampler.load_state_dict(state["sampler"])
        self.ledger.load_state_dict(state["ledger"])
        self.updater.load_state_dict(state["updater"])
        self.collector.engine.update_weights(self.progress.step)
        self.logger.resume(self.progress.step)

    def _finish(self) -> dict[str, Any]:
        progress = self.progress
        summary = {
            "algorithm": self.config.algorithm.adv_estimator,
            "seed": self.config.data.seed,
            "accuracy_before": progress.accuracy_before,
            "accuracy_after": progress.accuracy_after,
            "steps": progress.step,
            "responses": progress.rollouts,
            "tokens": progress.tokens,
            "wall_s": progress.train_wall_s,
            "cpu_s": progress.train_cpu_s,
            "tokens_per_s": progress.tokens / max(progress.train_wall_s, 1e-9),
            "run_dir": str(self.run_dir),
            "finished_at": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        }
        self.logger.write_summary(summary)
        self.logger.close()
        self.collector.reward.close()
        self.console.close(_closing_line(summary))
        return summary


def _is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _closing_line(summary: Mapping[str, Any]) -> str:
    before, after = summary["accuracy_before"], summary["accuracy_after"]
    spent = f"{summary['steps']} steps, {summary['responses']} responses, {summary['wall_s']:.0f} s"
    if before is None or after is None:
        return f"{spent}; the run lies in {summary['run_dir']}"
    return f"held-out accuracy {before:.1%} -> {after:.1%} after {spent}; the run lies in {summary['run_dir']}"
