"""Trains a vision-language model on a file of questions.

python -m diva_engine.train config=examples/tiles_cpu.yaml algorithm=diva data.rollout_batch_size=8
python -m diva_engine.train --list        the algorithms and what each presets
python -m diva_engine.train --settings    every setting, its default and meaning
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from diva_engine.algorithm.difficulty import DifficultyLedger
from diva_engine.algorithm.recipes import RECIPES, find_recipe, recipe_defaults
from diva_engine.algorithm.recipes.recipe import Recipe
from diva_engine.config import Config, DataConfig
from diva_engine.data.dataset import ProblemSet, open_problems, write_report
from diva_engine.data.prompts import PromptEncoder
from diva_engine.data.sampler import QuestionSampler
from diva_engine.policy.model import Policy, load_policy
from diva_engine.records import Problem, RewardFunction, Sampling, UserError
from diva_engine.rewards.reward import build_reward
from diva_engine.rollout.native_engine import NativeEngine
from diva_engine.settings import describe_settings, load_config, save_config
from diva_engine.trainer.checkpoint import (
    changed_settings,
    find_checkpoint,
    load_trainer_state,
    refuse_later_checkpoints,
)
from diva_engine.trainer.collect import Collector
from diva_engine.trainer.console import Console
from diva_engine.trainer.loop import Preparation, Trainer
from diva_engine.trainer.metrics import MetricsLogger
from diva_engine.trainer.reference import KlReward
from diva_engine.trainer.run_dir import find_run_dir, make_run_dir
from diva_engine.trainer.update import Updater
from diva_engine.trainer.validate import refuse_unknown_column
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
        train(load_config(words, recipe_defaults))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; trainer.load_checkpoint_path=latest goes on from the last checkpoint (trainer.save_freq)",
              file=sys.stderr)  # fmt: skip
        return 130
    return 0


def train(config: Config) -> dict[str, Any]:
    """Runs the training that the settings describe and returns its summary."""
    if config.trainer.num_threads:
        torch.set_num_threads(config.trainer.num_threads)
    find_recipe(config.algorithm.adv_estimator).check(config)
    train_problems, val_problems = open_data(config)
    run_dir = find_run_dir(config)
    checkpoint = None
    if config.trainer.load_checkpoint_path:
        checkpoint = find_checkpoint(config.trainer.load_checkpoint_path, run_dir)
        refuse_later_checkpoints(checkpoint, run_dir)
        print("\n".join(changed_settings(checkpoint, config)))
    make_run_dir(run_dir)
    policy = open_policy(config, checkpoint)
    trainer = build_trainer(config, policy, train_problems, val_problems, run_dir)
    if checkpoint:
        trainer.load_state_dict(load_trainer_state(checkpoint))
    save_config(config, run_dir / "config.yaml")
    return trainer.run()


def build_trainer(
    config: Config, policy: Policy, train_problems: ProblemSet, val_problems: Sequence[Problem], run_dir: Path
) -> Trainer:
    """The parts of a run, each from its own settings."""
    recipe = find_recipe(config.algorithm.adv_estimator)
    encoder = build_encoder(config, policy)
    drop_bad_rows([train_problems, val_problems], encoder, run_dir)
    sampler = QuestionSampler(
        len(train_problems), config.data.rollout_batch_size, seed=config.data.seed, shuffle=config.data.shuffle
    )
    num_steps = config.trainer.max_steps or config.trainer.total_epochs * sampler.steps_per_epoch
    collector = build_collector(config, policy, encoder)
    ledger = DifficultyLedger(config.difficulty)
    # The starting weights, whatever checkpoint the policy came from.
    reference = None if config.algorithm.disable_kl else open_policy(config)
    greedy = Sampling(temperature=0.0, max_tokens=config.data.max_response_length)
    return Trainer(
        config=config,
        recipe=recipe,
        policy=policy,
        train_problems=train_problems,
        val_problems=val_problems,
        sampler=sampler,
        collector=collector,
        greedy=collector.with_sampling(greedy),
        updater=Updater(policy, recipe.loss, config, num_steps, reference if config.algorithm.use_kl_loss else None),
        ledger=ledger,
        logger=open_logger(config, run_dir),
        console=Console(num_steps, is_shown="console" in config.trainer.logger),
        run_dir=run_dir,
        num_steps=num_steps,
        preparations=build_preparations(config, recipe, policy, ledger, reference),
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


def open_data(config: Config) -> tuple[ProblemSet, Sequence[Problem]]:
    """The training and the held-out questions, each described on the way."""
    data = config.data
    if not data.train_files:
        raise UserError("data.train_files is empty; give a parquet, jsonl or json file, a folder or a hub name")
    opened = [open_file(files, data) for files in (data.train_files, data.val_files) if files]
    for problems in opened:
        print("\n".join(problems.describe()))
    if not data.val_files:
        return opened[0], []
    refuse_unknown_column(opened[1], config.trainer.val_by, f"trainer.val_by={config.trainer.val_by}")
    return opened[0], opened[1]


def open_file(files: str, data: DataConfig) -> ProblemSet:
    """The questions behind one `data.train_files` or `data.val_files`, by the columns that the user named."""
    keys = {"text": data.prompt_key, "answer": data.answer_key, "images": data.image_key, "id": data.id_key}
    columns = {field: None if column == "none" else column for field, column in keys.items() if column}
    return open_problems(files, columns=columns, image_dir=data.image_dir or None, on_bad_row=data.on_bad_row)


def drop_bad_rows(opened: Sequence[Sequence[Problem]], encoder: PromptEncoder, run_dir: Path) -> None:
    """Leaves out the rows that no prompt can be made of, and writes all rows left out to `bad_rows.jsonl`."""
    problem_sets = [problems for problems in opened if isinstance(problems, ProblemSet)]
    for problems in problem_sets:
        if problems.drop_unusable(encoder.check):
            print("\n".join(problems.describe_rows()))
    write_report(run_dir / "bad_rows.jsonl", [bad for problems in problem_sets for bad in problems.bad_rows])


def open_policy(config: Config, checkpoint: Path | None = None) -> Policy:
    """The model of the settings, or, resuming, of the checkpoint."""
    model = config.worker.actor.model
    if not (checkpoint or model.model_path):
        raise UserError("worker.actor.model.model_path is empty; give a Hugging Face folder or hub name (model=...)")
    return load_policy(
        checkpoint / "policy" if checkpoint else model.model_path,
        dtype=model.torch_dtype,
        device=find_device(config.trainer.device),
        attn_implementation=model.attn_implementation,
        trust_remote_code=model.trust_remote_code,
        freeze_vision_tower=model.freeze_vision_tower,
        min_pixels=config.data.min_pixels,
        max_pixels=config.data.max_pixels,
    )


def build_encoder(config: Config, policy: Policy) -> PromptEncoder:
    data = config.data
    return PromptEncoder(
        policy.processor,
        format_prompt=data.format_prompt or None,
        system_prompt=data.system_prompt or None,
        min_pixels=data.min_pixels or None,
        max_pixels=data.max_pixels or None,
        max_prompt_length=data.max_prompt_length,
        image_dir=data.image_dir or None,
        font_path=data.font,
    )


def build_collector(config: Config, policy: Policy, encoder: PromptEncoder) -> Collector:
    rollout = config.worker.rollout
    engine = NativeEngine(policy.model, policy.processor, max_batch_rows=rollout.max_batch_rows)
    sampling = Sampling(rollout.temperature, rollout.top_p, config.data.max_response_length)
    return Collector(encoder, engine, open_reward(config), sampling, config.data.seed, config.data.on_bad_row)


def open_reward(config: Config) -> RewardFunction:
    """The user's own reward, or accuracy and format."""
    return build_reward(**vars(config.worker.reward))


def open_logger(config: Config, run_dir: Path) -> MetricsLogger:
    trainer = config.trainer
    return MetricsLogger(
        run_dir,
        loggers=trainer.logger,
        project_name=trainer.project_name,
        experiment_name=trainer.experiment_name,
    )


def find_device(name: str) -> str:
    """`auto` is the first GPU where torch sees one, else the CPU."""
    num_gpus = torch.cuda.device_count()
    if name == "auto":
        return "cuda" if num_gpus else "cpu"
    match = re.fullmatch(r"cpu|cuda(?::(\d+))?", name)
    if match is None:
        raise UserError(f"trainer.device={name} is no device; take auto, cpu, cuda or cuda:N")
    if name != "cpu" and not num_gpus:
        raise UserError(f"trainer.device={name}, but this torch sees no GPU; take trainer.device=cpu")
    if int(match[1] or 0) >= max(1, num_gpus):
        raise UserError(f"trainer.device={name}, but this torch sees {num_gpus} GPUs, counted from 0")
    return name


def print_recipes() -> None:
    for name, recipe in RECIPES.items():
        print(f"{name:12} {recipe.summary}")
        for setting, value in recipe.defaults.items():
            print(f"{'':12}   {setting}={value}")


def print_settings() -> None:
    for name, default, meaning in describe_settings():
        print(f"{name}={default!r}\n    {meaning}")


if __name__ == "__main__":
    sys.exit(main())
