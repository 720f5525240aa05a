"""The step of bench_step in this engine: collect, credit, update, weight sync, as the training loop does them.

Under torchrun on all of its ranks; the first one's times are kept.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from typing import Any

import torch

from bench.step_task import StepClock, StepTask, run_task, text_reward
from diva_engine.algorithm.difficulty import DifficultyLedger
from diva_engine.algorithm.plans import PlanContext
from diva_engine.algorithm.recipes.grpo import RECIPE
from diva_engine.config import Config
from diva_engine.data.prompts import PromptEncoder
from diva_engine.distributed import current_world, is_launched, leave_world, start_world
from diva_engine.policy.model import Policy
from diva_engine.policy.weights import full_weights
from diva_engine.records import Problem, Sampling, Score
from diva_engine.settings import load_config
from diva_engine.trainer.collect import Collector
from diva_engine.trainer.policies import load_whole_policy, open_policy
from diva_engine.trainer.rollout_engine import build_engine
from diva_engine.trainer.stopwatch import Stopwatch
from diva_engine.trainer.update import Updater
from diva_engine.trainer.worst_step import never_ending


class TextReward:
    """`text_reward` as this engine's rewards are called."""

    scores_alone = False  # scored after all answers, so that its time can be told from theirs

    def __call__(self, responses: Sequence[str], problems: Sequence[Problem], lengths: Sequence[int]) -> list[Score]:
        return [Score(text_reward(text), 0.0, 0.0) for text in responses]

    def take_counters(self) -> dict[str, int]:
        return {}

    def close(self) -> None:
        pass


def run(task: StepTask) -> dict[str, Any]:
    torch.set_num_threads(1)
    config = config_of(task)
    start_world(torch.device("cpu"))
    policy = open_policy(config)
    policy = dataclasses.replace(policy, processor=never_ending(policy.processor))
    encoder = PromptEncoder(policy.processor, max_prompt_length=100_000)
    engine = build_engine(config, policy, lambda: load_whole_policy(config).model)
    collector = Collector(encoder, engine, TextReward(), Sampling(max_tokens=task.tokens), seed=1)
    updater = Updater(policy, RECIPE.loss, config, num_steps=task.steps)
    problems = [
        Problem(id=str(number), text=f"<image>{task.question}", answer="", images=(picture,))
        for number, picture in enumerate(task.pictures())
    ]
    clock = StepClock()
    for step in range(task.steps):
        asked = problems[step * task.prompts : (step + 1) * task.prompts]
        with clock.phase("step"):
            one_step(step, asked, config, collector, updater, policy, clock)
        clock.end_step()
    is_first = current_world().is_first
    if is_launched():  # a world that vLLM made for itself it also leaves by itself
        leave_world()
    return {"is_first": is_first, "steps": clock.steps, "parameters": sum(p.numel() for p in policy.model.parameters())}


def one_step(
    step: int,
    problems: Sequence[Problem],
    config: Config,
    collector: Collector,
    updater: Updater,
    policy: Policy,
    clock: StepClock,
) -> None:
    context = PlanContext(config, DifficultyLedger(config.difficulty), step)
    stopwatch = Stopwatch()
    with clock.phase("rollout and reward"):
        collected = collector.collect(RECIPE.plan(problems, context), step, stopwatch)
    num_tokens = sum(len(rollout.token_ids) for group in collected.trained for rollout in group.rollouts)
    with clock.phase("update"):
        metrics = updater.update(collected.trained, RECIPE.credit(collected.trained, config))
    with clock.phase("sync"):
        collector.engine.update_weights(step + 1, full_weights(policy))
    clock.add("reward", stopwatch.cpu_s["reward"], stopwatch.wall_s["reward"])
    expected = len(problems) * config.worker.rollout.n
    if (metrics["actor/trained_rollouts"], num_tokens) != (expected, expected * config.data.max_response_length):
        raise SystemExit(f"{metrics['actor/trained_rollouts']} rollouts of {num_tokens} tokens: not the step asked for")


def config_of(task: StepTask) -> Config:
    return load_config(
        [
            "algorithm=grpo",
            f"worker.actor.model.model_path={task.model}",
            "trainer.device=cpu",
            f"worker.rollout.engine={task.engine}",
            f"worker.rollout.n={task.answers}",
            f"worker.rollout.max_batch_rows={task.responses}",
            f"worker.actor.micro_batch_tokens={task.micro_batch_tokens}",
            f"data.max_response_length={task.tokens}",
        ]
    )


if __name__ == "__main__":
    run_task(run, sys.argv[1:])
