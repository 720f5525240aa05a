"""Whole runs as small as they can be: a tiny random model, a few questions, a reward that needs no knowledge."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diva_engine.algorithm.recipes import recipe_defaults
from diva_engine.settings import load_config
from diva_engine.train import train
from python_tests.models import build_tiny_model
from python_tests.questions import EVEN_LENGTH_REWARD, write_questions

KL_IN_SEVERAL_STEPS = [  # settings: KL as loss, several optimizer steps a step, trees split
    "algorithm.disable_kl=false",
    "algorithm.kl_coef=0.1",
    "worker.actor.global_batch_size=1",
    "worker.actor.ppo_epochs=2",
    "worker.actor.micro_batch_tokens=60",
]


def write_inputs(
    folder: Path, *, num_train: int = 6, num_val: int = 0, reward: str = EVEN_LENGTH_REWARD, **shape: int
) -> Path:
    """A model (of another `shape` where asked for), training questions, held-out ones where asked for, and a reward."""
    build_tiny_model("qwen2_5_vl", folder / "model", **{"hidden_size": 32, **shape})
    write_questions(folder / "train.parquet", num_train)
    if num_val:
        write_questions(folder / "val.parquet", num_val)
    (folder / "reward.py").write_text(reward)
    return folder


def small_settings(inputs: Path, run_dir: Path, *extra: str) -> list[str]:
    """The words of a command that trains on `inputs`; later words win."""
    held_out = inputs / "val.parquet"
    return [
        f"data.train_files={inputs / 'train.parquet'}",
        *([f"data.val_files={held_out}"] if held_out.exists() else []),
        f"model={inputs / 'model'}",
        "data.rollout_batch_size=2",
        "data.max_response_length=8",
        "worker.rollout.n=4",
        "worker.actor.optim.lr=1e-3",
        f"worker.reward.reward_function={inputs / 'reward.py'}:score",
        "trainer.logger=[file]",
        "trainer.max_steps=4",
        f"trainer.save_checkpoint_path={run_dir}",
        *extra,
    ]


def small_run(inputs: Path, run_dir: Path, *extra: str) -> dict[str, Any]:
    """Trains and returns the summary."""
    return train(load_config(small_settings(inputs, run_dir, *extra), recipe_defaults))


# What a recipe needs to show its second stage within rollouts as few as these.
FEW = {"rescue": ["rescue.probe=2"]}


def choose(algorithm: str) -> list[str]:
    return [f"algorithm={algorithm}", *FEW.get(algorithm, [])]
