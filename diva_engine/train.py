"""Trains a vision-language model on a file of questions.

    python -m diva_engine.train config=examples/tiles_cpu.yaml algorithm=diva data.rollout_batch_size=8
    python -m diva_engine.train --list        the algorithms and what each presets
    python -m diva_engine.train --settings    every setting, its default and meaning
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from diva_engine.algorithm.difficulty import DifficultyLedger
from diva_engine.algorithm.recipes import RECIPES, find_recipe, recipe_defaults
from diva_engine.config import Config, describe_settings, load_config, save_config
from diva_engine.data.dataset import ProblemSet, load_problems
from diva_engine.data.prompts import PromptEncoder
from diva_engine.data.sampler import QuestionSampler
from diva_engine.policy.model import Policy, load_policy
from diva_engine.records import Sampling, UserError
from diva_engine.rewards import build_reward
from diva_engine.rollout.native_engine import NativeEngine
from diva_engine.trainer.checkpoint import find_checkpoint, load_trainer_state
from diva_engine.trainer.collect import Collector
from diva_engine.trainer.console import Console
from diva_engine.trainer.loop import Trainer
from diva_engine.trainer.metrics import MetricsLogger
from diva_engine.trainer.update import Updater


def main(arguments: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or {"-h", "--help"} & set(words):
        print(__doc__)
        return 0 if words else 2
    if "--list" in words:
        print_recipes()
        return 0
    if "--settings" in words:
        print_settings()
        return 0
    try:
        train(load_config(words, recipe_defaults))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def train(config: Config) -> dict[str, object]:
    """Runs the training that the settings describe and returns its summary."""
    run_dir = open_run_dir(config)
    if config.trainer.num_threads:
        torch.set_num_threads(config.trainer.num_threads)
    trainer = build_trainer(config, run_dir)
    if config.trainer.load_checkpoint_path:
        checkpoint = find_checkpoint(config.trainer.load_checkpoint_path, run_dir)
        trainer.load_state_dict(load_trainer_state(checkpoint))
    save_config(config, run_dir / "config.yaml")
    return trainer.run()


def build_trainer(config: Config, run_dir: Path) -> Trainer:
    """The parts of a run, each from its own settings."""
    recipe = find_recipe(config.algorithm.adv_estimator)
    device = find_device(config.trainer.device)
    train_problems, val_problems = open_problems(config)
    policy = open_policy(config, run_dir, device)
    sampler = QuestionSampler(
        len(train_problems), config.data.rollout_batch_size, seed=config.data.seed, shuffle=config.data.shuffle
    )
    num_steps = config.trainer.max_steps or config.trainer.total_epochs * sampler.steps_per_epoch
    sampled, greedy = build_collectors(config, policy)
    return Trainer(
        config=config,
        recipe=recipe,
        policy=policy,
        train_problems=train_problems,
        val_problems=val_problems,
        sampler=sampler,
        collector=sampled,
        greedy=greedy,
        updater=Updater(policy, recipe.loss, config, num_steps),
        ledger=DifficultyLedger(config.difficulty),
        logger=MetricsLogger(run_dir, loggers=tuple(config.trainer.logger)),
        console=Console(num_steps),
        run_dir=run_dir,
        num_steps=num_steps,
    )
