"""One run: the engine's own trainer on one regime, with one method, learning rate and seed, and its curve."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from bench.learn.curve import is_settled
from bench.learn.methods import COMMON, METHODS, ROLLOUTS_PER_STEP
from bench.learn.regimes import ANSWERS_PER_HELD_OUT, REGIMES, Regime, held_out_problems, train_problems
from bench.learn.rewards import DerivationReward
from bench.learn.robustness import REFERENCES
from bench.learn.tally import Tally
from diva_engine.algorithm.recipes import recipe_defaults
from diva_engine.config import Config
from diva_engine.policy.model import load_policy
from diva_engine.records import Problem
from diva_engine.settings import build_config
from diva_engine.train import build_trainer
from diva_engine.trainer.collect import Collector
from diva_engine.trainer.loop import Trainer
from diva_engine.trainer.metrics import MetricsLogger
from diva_engine.trainer.validate import Validation, validate

EVALUATE_EVERY = 640  # rollouts
BUDGET = 7680  # rollouts of a whole run: 60 steps of 128, 120 of 64
ENDLESS = 10**9  # steps: the budget ends a run, not a number of steps


@dataclass(frozen=True)
class Job:
    """What one run is; two equal jobs give the same curve."""

    regime: str
    method: str
    lr: float
    seed: int
    references: str = "clean"  # what the reference steps are: a name of robustness.REFERENCES
    reward: str = "derivation"  # or "answer": the final number alone
    budget: int = BUDGET
    per_step: int = ROLLOUTS_PER_STEP  # rollouts of a step, at most
    per_update: int = 0  # prompts of an optimizer step, at most; 0: all of the step's

    @property
    def name(self) -> str:
        """The file name of its results."""
        extras = [self.references] * (self.references != "clean") + [self.reward] * (self.reward != "derivation")
        extras += [str(self.budget)] * (self.budget != BUDGET)
        extras += [f"step{self.per_step}"] * (self.per_step != ROLLOUTS_PER_STEP)
        extras += [f"update{self.per_update}"] * (self.per_update != 0)
        return "-".join([self.regime, self.method, f"lr{self.lr:g}", f"seed{self.seed}", *extras])


@dataclass(frozen=True)
class Stop:
    """When a run may end before its budget: once it keeps the targets, but not before so many rollouts."""

    targets: tuple[float, ...] = ()  # of ALL and of HARD; none: never
    at_least: int = 0  # rollouts

    def is_due(self, points: Sequence[Mapping[str, Any]]) -> bool:
        if not self.targets or points[-1]["rollouts"] < self.at_least:
            return False
        return is_settled([[point[name] for point in points] for name in ("all", "hard")], self.targets)


class BudgetSpent(Exception):
    """Ends a run from within, at its last evaluation."""


@dataclass
class CurveLogger(MetricsLogger):
    """Stands where the trainer's log stands: after each step it counts, and every so many rollouts it evaluates."""

    regime: Regime
    held_out: Sequence[Problem]
    collector: Collector
    tally: Tally
    budget: int
    stop: Stop
    trainer: Trainer | None = None
    points: list[dict[str, Any]] = field(default_factory=list)
    steps: list[Mapping[str, float]] = field(default_factory=list)  # since the last evaluation

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self.steps.append(metrics)
        assert self.trainer is not None
        progress = self.trainer.progress
        if progress.rollouts >= min(EVALUATE_EVERY * len(self.points), self.budget):
            self.evaluate(progress.rollouts, step, progress.train_cpu_s)

    def evaluate(self, rollouts: int, step: int, cpu_s: float) -> None:
        found = validate(self.held_out, self.collector, batch_size=512, num_rollouts=ANSWERS_PER_HELD_OUT)
        point = {"rollouts": rollouts, "step": step, "cpu_s": round(cpu_s, 3), **accuracies(found, self.regime)}
        self.points.append(point | self.tally.take(self.steps))
        self.steps = []
        if rollouts >= self.budget or self.stop.is_due(self.points):
            raise BudgetSpent

    def log_rollout(self, *arguments: Any) -> None:
        """Answers are not kept."""

    def close(self) -> None:
        """No file is open."""


def accuracies(found: Validation, regime: Regime) -> dict[str, Any]:
    """ALL over the mixture, HARD over its hard levels, each level, and how often two answers to a question differ."""
    by_level = {int(level): share for level, share in found.accuracy_by("level").items()}
    hard = [level for level in regime.asked_levels if level in regime.hard]
    differing = [len({rollout.text for rollout in group.rollouts}) > 1 for group in found.groups]
    return {
        "all": round(found.accuracy, 4),
        "hard": round(sum(by_level[level] for level in hard) / len(hard), 4),
        "levels": {str(level): round(share, 4) for level, share in by_level.items()},
        "differing": round(sum(differing) / len(differing), 4),
    }


def run(job: Job, base: Path, stop: Stop = Stop()) -> dict[str, Any]:
    """Trains to the budget, or until the stop, and returns the job with its curve."""
    torch.set_num_threads(1)
    regime, tally = REGIMES[job.regime], Tally()
    problems = [REFERENCES[job.references](problem) for problem in train_problems(regime, job.seed)]
    with tempfile.TemporaryDirectory() as run_dir:
        trainer = open_trainer(configure(job, base), base, problems, Path(run_dir))
        trainer.recipe = tally.counting(trainer.recipe)
        trainer.collector.reward.close()
        trainer.collector = replace(trainer.collector, reward=DerivationReward(answer_only=job.reward == "answer"))
        # The same questions and the same random numbers for all: methods share the noise of the held-out set.
        collector = replace(trainer.collector, reward=DerivationReward(), seed=0)
        logger = CurveLogger(regime, held_out_problems(regime), collector, tally, job.budget, stop, trainer)
        trainer.logger = logger
        try:
            logger.evaluate(0, 0, 0.0)
            trainer.run()
        except BudgetSpent:
            pass
    wall_s = round(trainer.progress.train_wall_s, 2)
    return {"job": asdict(job), "points": logger.points, "surface": tally.surface(), "wall_s": wall_s}


def configure(job: Job, base: Path) -> Config:
    """The run's settings: the recipe's presets, the comparison's, the method's, then the job's."""
    method = METHODS[job.method]
    return build_config(
        {
            **recipe_defaults(method.recipe, "paper"),
            **COMMON,
            **method.settings,
            "algorithm.adv_estimator": method.recipe,
            "data.rollout_batch_size": method.questions_at(job.per_step),
            "data.seed": job.seed,
            "worker.actor.model.model_path": str(base),
            "worker.actor.optim.lr": job.lr,
            "worker.actor.global_batch_size": job.per_update,
            "trainer.val_before_train": False,
            "trainer.max_steps": ENDLESS,
        }
    )


def open_trainer(config: Config, base: Path, problems: Sequence[Problem], run_dir: Path) -> Trainer:
    """The engine's trainer as its command builds it."""
    return build_trainer(config, load_policy(base), Questions(problems), [], run_dir)  # type: ignore[arg-type]


class Questions(list[Problem]):
    """Questions in memory, as the trainer's command wants them."""

    @property
    def ids(self) -> list[str]:
        return [problem.id for problem in self]
