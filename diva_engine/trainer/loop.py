"""The training loop. It runs any recipe and asks none which it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diva_engine.algorithm.plans import PlanContext, no_more_questions
from diva_engine.algorithm.recipes.recipe import Recipe
from diva_engine.algorithm.variants import always_drawable
from diva_engine.config import Config
from diva_engine.distributed import current_world, gather_from_all, sum_over_all
from diva_engine.policy.model import Policy
from diva_engine.policy.weights import full_weights
from diva_engine.records import Problem, ScoredGroup, UserError
from diva_engine.seeds import derive_random
from diva_engine.trainer.checkpoint_saver import CheckpointSaver
from diva_engine.trainer.collect import Collector
from diva_engine.trainer.console import Console
from diva_engine.trainer.faults import FaultLog, StepFailed
from diva_engine.trainer.heartbeat import Heartbeat
from diva_engine.trainer.lookahead import probable_requests
from diva_engine.trainer.metrics import MetricsLogger
from diva_engine.trainer.question_draw import QuestionDraw
from diva_engine.trainer.run_progress import Progress, closing_line, summary_of
from diva_engine.trainer.run_state import load_run_state, run_state
from diva_engine.trainer.signals import StopAsked, Stopped, StopRequest, catch_stop_signals
from diva_engine.trainer.skipped_prompts import cut_after, note_skipped
from diva_engine.trainer.step_metrics import rollout_metrics
from diva_engine.trainer.stopwatch import Stopwatch
from diva_engine.trainer.sync_proof import prove_sync
from diva_engine.trainer.update import Updater
from diva_engine.trainer.validate import Validation, validate

# What is done to a step's groups between their rewards and their credit: (groups, step) -> (groups, metrics).
Preparation = Callable[[Sequence[ScoredGroup], int], tuple[list[ScoredGroup], dict[str, float]]]


@dataclass
class Trainer:
    """The parts of a run, built by the command, and the loop over its steps."""

    config: Config
    recipe: Recipe
    policy: Policy
    questions: QuestionDraw
    val_problems: Sequence[Problem]
    collector: Collector
    greedy: Collector  # the same parts, sampling greedily: for held-out accuracy
    updater: Updater
    saver: CheckpointSaver
    logger: MetricsLogger
    console: Console
    run_dir: Path
    num_steps: int
    heartbeat: Heartbeat
    preparations: Sequence[Preparation] = ()
    is_drawable: Callable[[str], bool] = always_drawable
    faults: FaultLog = field(default_factory=FaultLog)
    progress: Progress = field(default_factory=Progress)
    stop: StopRequest = field(default_factory=StopRequest)
    measured: dict[str, float] = field(default_factory=dict)  # the last step's metrics, held-out ones included

    def run(self) -> dict[str, Any]:
        """Trains to the last step and returns the summary that `summary.json` holds.

        Raises Stopped where SIGTERM or SIGINT came in time, when the last finished step has its checkpoint.
        """
        self.heartbeat.step = self.progress.step
        try:
            with self.heartbeat.running(), catch_stop_signals() as self.stop:
                self._run_steps()
                return self._finish()
        finally:
            self.saver.close()
            self.logger.close()
            self.collector.reward.close()
            self.console.close()

    def _run_steps(self) -> None:
        settings, progress = self.config.trainer, self.progress
        while True:
            is_last = progress.step == self.num_steps
            if progress.step != progress.validated_step and self._is_validation_due(is_last):
                self._validate()
            if progress.step > 0 and (is_last or _is_due(progress.step, settings.save_freq)):
                self._save()
            if is_last:
                return
            stopwatch = Stopwatch(self.heartbeat)
            with stopwatch.phase("step"), self._saved_if_it_ends():
                metrics = self._train_step(stopwatch)
            self._advance(metrics, stopwatch)
            self._stop_if_stuck()

    def _is_validation_due(self, is_last: bool) -> bool:
        step, settings = self.progress.step, self.config.trainer
        return settings.val_before_train if step == 0 else is_last or _is_due(step, settings.val_freq)

    @contextmanager
    def _saved_if_it_ends(self) -> Iterator[None]:
        """A checkpoint from before the step, where the step is broken off before it has moved the weights: a resumed
        run does the whole step again, as it would have been."""
        self.faults.step = self.progress.step + 1
        before, num_updates = self.state_dict(), self.updater.num_updates
        try:
            yield
        except StopAsked as asked:
            place = self._save_at_once(before)
            raise Stopped(asked.number, self.progress.step, place, self.run_dir) from None
        except Exception as failure:
            self.faults.record_traceback(failure)
            has_moved = self.updater.has_moved or self.updater.num_updates > num_updates
            # Saving takes all ranks; of several, one alone may have failed otherwise than by StepFailed.
            is_alone = current_world().size > 1 and not isinstance(failure, StepFailed)
            if has_moved or is_alone or self.progress.step == 0:
                raise
            saved = f"{self._save_at_once(before)} holds the run as it was before step {self.faults.step}"
            if isinstance(failure, UserError):
                raise UserError(f"{failure}; {saved}") from None
            self.console.note(saved)
            raise

    def _stop_if_asked(self) -> None:
        """Where the weights are still those of the last finished step. A collective call: ranks stop together."""
        if number := max(gather_from_all(self.stop.number)):
            raise StopAsked(number)

    def _stop_if_stuck(self) -> None:
        """After too many skipped optimizer steps in a row; the checkpoint has the unmoved weights."""
        reason = self.updater.why_stuck()
        if reason:
            raise UserError(f"{reason}; {self._save_at_once(self.state_dict())} holds the run as it is")

    def _train_step(self, stopwatch: Stopwatch) -> dict[str, float]:
        self._stop_if_asked()
        step = self.progress.step
        problems = self.questions.next_step()
        level = self.questions.ledger.mean_difficulty(problems)
        context = self._context(step, self.questions.more)
        self._prefetch_next()
        collected = self.collector.collect(self.recipe.plan(problems, context), step, stopwatch)
        self._stop_if_asked()
        self.collector.engine.sleep()
        for note in context.notes:
            self.console.note(note)
        trained, prepared = self._prepare(collected.trained, stopwatch)
        with stopwatch.phase("credit"):
            credit = self.recipe.credit(trained, self.config)
        self._stop_if_asked()
        with stopwatch.phase("update"):
            updated = self.updater.update(trained, credit)
        self.questions.ledger.observe(collected.asked, step)
        with stopwatch.phase("sync"):
            self.collector.engine.update_weights(step + 1, full_weights(self.policy))
        draw, shown = derive_random(self.config.data.seed, "rollouts to log", step), self.config.trainer.rollouts_to_log
        self.logger.log_rollouts(step + 1, collected.trained, credit.advantage.tolist(), draw, shown)
        return {
            **rollout_metrics(collected.asked),
            **self.collector.take_reward_counters(),
            **self.collector.take_prefetch_metrics(),
            **context.metrics,
            **prepared,
            **credit.metrics,
            **updated,
            **self.faults.take_counts(),
            "difficulty/mean": level,
            "step/skipped_prompts": float(self._note_skipped(self.collector, f"step {step + 1}")),
        }

    def _context(self, step: int, draw_more: Callable[[int], list[Problem]]) -> PlanContext:
        return PlanContext(self.config, self.questions.ledger, step, draw_more, is_drawable=self.is_drawable)

    def _prefetch_next(self) -> None:
        """Has the next step's prompts encoded while this one generates and learns."""
        step = self.progress.step + 1
        if self.config.data.prefetch and step < self.num_steps:
            requests = probable_requests(self.recipe, self.questions.peek(), self._context(step, no_more_questions))
            self.collector.prefetch(requests, step)

    def _prepare(self, groups: list[ScoredGroup], stopwatch: Stopwatch) -> tuple[list[ScoredGroup], dict[str, float]]:
        """The step's groups with all that their credit reads."""
        metrics: dict[str, float] = {}
        with stopwatch.phase("prepare"):
            for prepare in self.preparations:
                groups, found = prepare(groups, self.progress.step)
                metrics |= found
        return groups, metrics

    def _note_skipped(self, collector: Collector, when: str) -> int:
        """Writes why prompts could not be posed; how many they were."""
        reasons = list(collector.skipped)
        collector.skipped.clear()
        if reasons and current_world().is_first:
            note_skipped(self.run_dir, when, reasons)
            self.console.note(f"prompts that cannot be posed are left out; {self.run_dir}/skipped_prompts.txt says why")
        return len(reasons)

    def _advance(self, metrics: dict[str, float], stopwatch: Stopwatch) -> None:
        """Counts the step and logs it."""
        progress = self.progress
        progress.step += 1
        progress.rollouts += int(metrics["step/rollouts"])
        progress.tokens += int(metrics["step/tokens"])
        progress.train_wall_s += stopwatch.wall_s["step"]
        cpu_s = sum_over_all(stopwatch.cpu_s)
        progress.train_cpu_s += cpu_s["step"]
        metrics |= {
            **stopwatch.throughput(metrics["step/tokens"], cpu_s["rollout"]),
            **stopwatch.metrics(),
            **self.saver.take_metrics(),
        }
        self.measured = dict(metrics)
        self.logger.log(progress.step, metrics)
        self.console.step(progress.step, metrics)
        self.heartbeat.advance(progress.step)

    def _validate(self) -> None:
        """Held-out accuracy after the step; broken off by a signal, it is for the resumed run to do."""
        progress = self.progress
        if len(self.val_problems):
            self.console.phase("held-out accuracy")
            with self._saved_if_it_ends(), self.heartbeat.phase("validation"):
                self._log_validation(self._ask_held_out())
        progress.validated_step = progress.step

    def _ask_held_out(self) -> Validation:
        def between(num_questions: int) -> None:
            self.heartbeat.restart_clock()
            self._stop_if_asked()

        batch_size = self.config.worker.rollout.max_batch_rows
        return validate(self.val_problems, self.greedy, batch_size=batch_size, on_batch=between)

    def _log_validation(self, result: Validation) -> None:
        self.collector.reward.take_counters()  # the next step's counts are of its own answers
        metrics = result.metrics(self.config.trainer.val_by) | prove_sync(self.config, self.policy, result.groups)
        metrics["val/skipped_prompts"] = float(self._note_skipped(self.greedy, f"validation {self.progress.step}"))
        self.measured |= metrics
        self.logger.log(self.progress.step, metrics)
        self.console.validation(self.progress.step, metrics)
        if self.progress.step == 0:
            self.progress.accuracy_before = result.accuracy
        else:
            self.progress.accuracy_after = result.accuracy

    def _save(self, state: Mapping[str, Any] | None = None) -> None:
        """A checkpoint of the state, or, not given, of the run as it is; written while the run goes on."""
        self.console.phase("saving")
        best = {name: self.measured[name] for name in (self.config.trainer.save_best,) if name in self.measured}
        with self.heartbeat.phase("saving"):
            self.logger.sync()
            self.saver.save(self.progress.step, self.updater.tensors(), state or self.state_dict(), best)

    def _save_at_once(self, state: Mapping[str, Any]) -> str:
        """The newest checkpoint's place, for a run that is about to end; in words where it could not be written."""
        self._save(state)
        with self.heartbeat.phase("saving"):
            self.saver.wait()
        if self.saver.last_error:
            return f"no checkpoint was written ({self.saver.last_error}), the newest before"
        return str(self.saver.path_of(self.progress.step))

    def state_dict(self) -> dict[str, Any]:
        return run_state(self.progress, self.questions.sampler, self.questions.ledger, self.updater)

    def resume(self, checkpoint: Path) -> None:
        """Goes on from a checkpoint whose weights the policy has. A collective call."""
        self.progress = load_run_state(checkpoint, self.questions.sampler, self.questions.ledger, self.updater)
        self.collector.engine.update_weights(self.progress.step, full_weights(self.policy))
        self.logger.resume(self.progress.step)
        if current_world().is_first:
            cut_after(self.run_dir, self.progress.step)
        self.saver.resume(checkpoint, vars(self.progress))

    def _finish(self) -> dict[str, Any]:
        self.saver.wait()
        summary = summary_of(self.config, self.progress, self.run_dir)
        self.logger.write_summary(summary)
        self.console.close(closing_line(summary))
        if self.saver.last_error:
            raise UserError(
                f"the last checkpoint was not written ({self.saver.last_error}); make room and go on from the one "
                "before with trainer.load_checkpoint_path=latest"
            )
        return summary


def _is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
