"""The step of bench_step in TRL's GRPOTrainer, transformers generating."""

from __future__ import annotations

import diva_engine  # isort: skip  # noqa: F401 - before trl: it lets torchvision be imported beside a CPU torch

import sys
import tempfile
from typing import Any

import torch
from datasets import Dataset, Features, Image, Value
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from bench.step_task import StepClock, StepTask, run_task, text_reward


class StepEnds(TrainerCallback):
    """A step lasts from the end of the one before: what is between them belongs to it."""

    def __init__(self, clock: StepClock) -> None:
        self.clock = clock

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self._begin()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self._phase.__exit__(None, None, None)
        self.clock.end_step()
        self._begin()

    def _begin(self) -> None:
        self._phase = self.clock.phase("step")
        self._phase.__enter__()


def reward(completions: list[Any], completion_ids: list[list[int]], **columns: Any) -> list[float]:
    if any(len(ids) != NUM_TOKENS for ids in completion_ids):
        raise SystemExit(f"answers of {sorted({len(ids) for ids in completion_ids})} tokens: not the step asked for")
    return [text_reward(completion[0]["content"]) for completion in completions]


def run(task: StepTask) -> dict[str, Any]:
    global NUM_TOKENS
    NUM_TOKENS = task.tokens
    torch.set_num_threads(1)
    clock = StepClock()
    with tempfile.TemporaryDirectory() as folder:
        trainer = GRPOTrainer(
            task.model,
            reward,
            args=arguments(task, folder),
            train_dataset=questions(task),
            callbacks=[StepEnds(clock)],
        )
        trainer._generate_and_score_completions = clock.timed(
            "rollout and reward", trainer._generate_and_score_completions
        )
        trainer._calculate_rewards = clock.timed("reward", trainer._calculate_rewards)
        trainer.train()
    return {"steps": clock.steps, "parameters": sum(p.numel() for p in trainer.model.parameters())}


def arguments(task: StepTask, folder: str) -> GRPOConfig:
    """On policy, one optimizer step, no KL term, nothing recomputed, nothing saved; everything else TRL's default."""
    return GRPOConfig(
        output_dir=folder,
        max_steps=task.steps,
        per_device_train_batch_size=task.micro_batch,
        gradient_accumulation_steps=task.responses // task.micro_batch,
        num_generations=task.answers,
        max_completion_length=task.tokens,
        generation_kwargs={"min_new_tokens": task.tokens},
        learning_rate=1e-6,
        gradient_checkpointing=False,
        shuffle_dataset=False,
        bf16=False,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        model_init_kwargs={"dtype": "float32"},
    )


def questions(task: StepTask) -> Dataset:
    pictures = task.pictures()
    rows = {
        "prompt": [[{"role": "user", "content": task.question}]] * len(pictures),
        "image": [{"bytes": picture, "path": None} for picture in pictures],
    }
    features = Features({"prompt": [{"role": Value("string"), "content": Value("string")}], "image": Image()})
    return Dataset.from_dict(rows, features=features)


if __name__ == "__main__":
    run_task(run, sys.argv[1:])
