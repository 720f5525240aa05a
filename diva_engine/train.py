"""Trains a vision-language model on a file of questions.

python -m diva_engine.train config=examples/tiles_cpu.yaml algorithm=diva data.rollout_batch_size=8
python -m diva_engine.train --list        the algorithms and what each presets
python -m diva_engine.train --settings    every setting, its default and meaning
python -m diva_engine.train --dry-run ... [--gpus 8]    memory of a run with these settings, phase by phase
"""

from __future__ import annotations

import faulthandler
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from diva_engine.algorithm.difficulty import DifficultyLedger
from diva_engine.algorithm.recipes import RECIPES, find_recipe, recipe_defaults
from diva_engine.algorithm.recipes.recipe import Recipe
from diva_engine.config import Config
from diva_engine.data.dataset import ProblemSet
from diva_engine.data.prefetch import MIB, PromptPrefetcher
from diva_engine.data.prompts import PromptEncoder
from diva_engine.data.sampler import QuestionSampler
from diva_engine.data.text_in_image import Drawable
from diva_engine.distributed import (
    current_world,
    first_result,
    leave_world,
    say,
    say_once,
    start_world,
)
from diva_engine.policy.model import Policy
from diva_engine.policy.weights import full_weights
from diva_engine.records import Problem, RewardFunction, Sampling, UserError
from diva_engine.rewards.reward import build_reward
from diva_engine.settings import describe_settings, load_config, save_config
from diva_engine.trainer.checkpoint import changes_since, checkpoint_to_go_on_from, refuse_unknown_metric
from diva_engine.trainer.checkpoint_saver import CheckpointSaver, versions
from diva_engine.trainer.collect import Collector
from diva_engine.trainer.console import Console
from diva_engine.trainer.engine_restart import RestartedEngine
from diva_engine.trainer.faults import FaultLog
from diva_engine.trainer.heartbeat import open_heartbeat
from diva_engine.trainer.ledger_files import open_ledger
from diva_engine.trainer.loop import Preparation, Trainer
from diva_engine.trainer.metrics import MetricsLogger
from diva_engine.trainer.policies import find_device, load_whole_policy, open_policy, open_reference, refuse_untrainable
from diva_engine.trainer.question_draw import QuestionDraw
from diva_engine.trainer.questions import build_encoder, drop_bad_rows, open_data
from diva_engine.trainer.random_state import seed_random_state
from diva_engine.trainer.rank_watch import watched_ranks
from diva_engine.trainer.reference import KlReward
from diva_engine.trainer.rollout_engine import build_engine
from diva_engine.trainer.run_dir import command_to_go_on, find_run_dir, make_run_dir
from diva_engine.trainer.signals import Stopped
from diva_engine.trainer.skipped_prompts import cut_after
from diva_engine.trainer.update import Updater
from diva_engine.trainer.visual_entropy import VisualEntropy


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
        if "--dry-run" in words:
            from diva_engine.dry_run import dry_run  # it builds on this file

            dry_run(words)
        else:
            train(load_config(words, recipe_defaults, say))
    except Stopped as stopped:
        if current_world().is_first:
            print(f"{stopped}; go on with: {command_to_go_on(stopped.run_dir)}")
        return stopped.exit_code
    except UserError as error:
        say_once(f"error: {error}")
        return 2
    except KeyboardInterrupt:
        print("stopped; trainer.load_checkpoint_path=latest goes on from the last checkpoint (trainer.save_freq)",
              file=sys.stderr)  # fmt: skip
        return 130
    finally:
        leave_world()
    return 0


def train(config: Config) -> dict[str, Any]:
    """Runs the training that the settings describe and returns its summary."""
    if config.trainer.num_threads:
        torch.set_num_threads(config.trainer.num_threads)
    find_recipe(config.algorithm.adv_estimator).check(config)
    refuse_unknown_metric(config)
    refuse_untrainable(config)
    device = torch.device(find_device(config.trainer.device))
    world = start_world(device, is_alone=config.worker.actor.offload.offload_params and device.type == "cuda")
    config.worker.actor.fsdp.ranks_a_copy(world.size)  # refuses before anything is loaded
    seed_random_state(config.data.seed, world.rank)
    with watched_ranks(config.trainer.rank_timeout_s):
        return train_on_all_ranks(config)


def train_on_all_ranks(config: Config) -> dict[str, Any]:
    """The training, in a world that has been joined."""
    train_problems, val_problems = open_data(config)
    run_dir = first_result(lambda: find_run_dir(config))
    checkpoint = None
    if path := config.trainer.load_checkpoint_path:
        checkpoint = first_result(lambda: checkpoint_to_go_on_from(path, run_dir))
    if checkpoint:
        say("\n".join(changes_since(checkpoint, config, versions())))
    elif path:
        config = begun_anew(config, run_dir)
    first_result(lambda: make_run_dir(run_dir))
    policy = open_policy(config, checkpoint)
    trainer = build_trainer(config, policy, train_problems, val_problems, run_dir)
    if checkpoint:
        trainer.resume(checkpoint)
    if current_world().is_first:
        save_config(config, run_dir / "config.yaml.tmp")
        os.replace(run_dir / "config.yaml.tmp", run_dir / "config.yaml")  # never half a file
    try:
        return trainer.run()
    finally:
        trainer.collector.close()


def begun_anew(config: Config, run_dir: Path) -> Config:
    """The settings of a run that was to go on if it could. What an earlier try noted is dropped or put aside."""
    if current_world().is_first:
        cut_after(run_dir, -1)
    return replace(config, trainer=replace(config.trainer, load_checkpoint_path=""))


def build_trainer(
    config: Config, policy: Policy, train_problems: ProblemSet, val_problems: Sequence[Problem], run_dir: Path
) -> Trainer:
    """The parts of a run, each from its own settings."""
    recipe = find_recipe(config.algorithm.adv_estimator)
    encoder = build_encoder(config, policy.processor)
    drop_bad_rows([train_problems, val_problems], encoder, run_dir)
    sampler = QuestionSampler(
        len(train_problems), config.data.rollout_batch_size, seed=config.data.seed, shuffle=config.data.shuffle
    )
    num_steps = config.trainer.max_steps or config.trainer.total_epochs * sampler.steps_per_epoch
    console = Console(num_steps, is_shown="console" in config.trainer.logger and current_world().is_first)
    faults = FaultLog(run_dir, console.note)
    collector = build_collector(config, policy, encoder, faults)
    ledger = open_ledger(config, train_problems.ids, policy.device)
    reference = None if config.algorithm.disable_kl else open_reference(config)
    kl_reference = reference if config.algorithm.use_kl_loss else None
    return Trainer(
        config=config,
        recipe=recipe,
        policy=policy,
        questions=QuestionDraw(train_problems, sampler, ledger),
        val_problems=val_problems,
        collector=prefetching(collector, config.data.prefetch),
        greedy=collector.with_sampling(replace(collector.sampling, temperature=0.0, top_p=1.0)),
        updater=Updater(policy, recipe.loss, config, num_steps, kl_reference, faults=faults),
        saver=CheckpointSaver(run_dir, policy, config),
        logger=open_logger(config, run_dir),
        console=console,
        run_dir=run_dir,
        num_steps=num_steps,
        heartbeat=open_heartbeat(config, run_dir, num_steps, console),
        preparations=build_preparations(config, recipe, policy, ledger, reference),
        is_drawable=Drawable(config.data.font, console.note),
        faults=faults,
    )


def build_preparations(
    config: Config, recipe: Recipe, policy: Policy, ledger: DifficultyLedger, reference: Policy | None
) -> list[Preparation]:
    """What recipe and settings ask to be done to a step's groups between their rewards and their credit."""
    preparations: list[Preparation] = []
    if recipe.needs_visual_entropy(config):
        preparations.append(VisualEntropy(policy, ledger, config.durian))
    if reference is not None and not config.algorithm.use_kl_loss:
        preparations.append(KlReward(reference, config))
    return preparations


def build_collector(config: Config, policy: Policy, encoder: PromptEncoder, faults: FaultLog) -> Collector:
    rollout = config.worker.rollout

    def whole_model() -> PreTrainedModel:
        return load_whole_policy(config).model.requires_grad_(False)

    engine = RestartedEngine(
        lambda: build_engine(config, policy, whole_model),
        lambda: full_weights(policy),
        faults,
        among_ranks=rollout.engine == "native",  # vLLM's end closes all process groups, the training's too
    )
    sampling = Sampling(rollout.temperature, rollout.top_p, config.data.max_response_length, stop=tuple(rollout.stop))
    data, overlap = config.data, config.worker.reward.overlap
    return Collector(encoder, engine, open_reward(config), sampling, data.seed, data.on_bad_row, overlap)


def prefetching(collector: Collector, size_mib: int) -> Collector:
    """The collector with its next step's prompts made in the background; itself where the setting turns that off."""
    return replace(collector, encoder=PromptPrefetcher(collector.encoder, size_mib * MIB)) if size_mib else collector


def open_reward(config: Config) -> RewardFunction:
    """The user's own reward, or accuracy and format."""
    return build_reward(**{name: value for name, value in vars(config.worker.reward).items() if name != "overlap"})


def open_logger(config: Config, run_dir: Path) -> MetricsLogger:
    trainer = config.trainer
    return MetricsLogger(
        run_dir,
        loggers=trainer.logger if current_world().is_first else (),
        project_name=trainer.project_name,
        experiment_name=trainer.experiment_name,
    )


def print_recipes() -> None:
    for name, recipe in RECIPES.items():
        print(f"{name:12} {recipe.summary}")
        for setting, value in recipe.defaults.items():
            print(f"{'':12}   {setting}={value}")


def print_settings() -> None:
    for name, default, meaning in describe_settings():
        print(f"{name}={default!r}\n    {meaning}")


if __name__ == "__main__":
    faulthandler.enable()  # a crash in C code shows where
    sys.exit(main())
