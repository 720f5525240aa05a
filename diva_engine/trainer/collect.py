"""Rollouts for a step: runs a recipe's plan stage by stage, from requests to scored groups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

from diva_engine.algorithm.plans import PlanRun
from diva_engine.records import (
    GenerationJob,
    Prompt,
    Request,
    RewardFunction,
    Rollout,
    RolloutEngine,
    Sampling,
    ScoredGroup,
    UserError,
    Variant,
)
from diva_engine.seeds import derive_seed
from diva_engine.trainer.stopwatch import Stopwatch


class Encoder(Protocol):
    """Turns a variant into what the model reads; `key` seeds the perturbation of its images."""

    def encode(self, variant: Variant, key: int) -> Prompt: ...


@dataclass(frozen=True)
class Collected:
    """What a plan brought home."""

    trained: list[ScoredGroup]  # the groups that the step trains on; without rollouts where only a prefix is trained
    asked: list[ScoredGroup]  # every group generated, in order: what the step has cost


@dataclass(frozen=True)
class Collector:
    """The way from a request to a scored group: prompt, rollouts, rewards."""

    encoder: Encoder
    engine: RolloutEngine
    reward: RewardFunction
    sampling: Sampling
    seed: int
    on_bad_row: Literal["skip", "stop"] = "stop"
    skipped: list[str] = field(default_factory=list)  # why requests could not be posed, in order

    def with_sampling(self, sampling: Sampling) -> Collector:
        """The same way, answers drawn otherwise."""
        return replace(self, sampling=sampling, skipped=[])

    def collect(self, plan_run: PlanRun, step: int, stopwatch: Stopwatch) -> Collected:
        """Answers the plan's stages until it returns."""
        asked: list[ScoredGroup] = []
        requests = next(plan_run)
        while True:
            groups = self.ask(requests, step, stopwatch)
            asked += [group for group in groups if group.rollouts]
            try:
                requests = plan_run.send(groups)
            except StopIteration as done:
                return Collected(trained=done.value, asked=asked)

    def ask(self, requests: Sequence[Request], step: int, stopwatch: Stopwatch) -> list[ScoredGroup]:
        """One stage: a scored group for each request that can be posed, in order.

        A request whose prompt is too long or whose image does not decode is left out and noted in `skipped`, or, with
        on_bad_row="stop", raised as `UserError`.
        """
        with stopwatch.phase("prompts"):
            posed = [(request, prompt) for request in requests if (prompt := self._encode(request, step)) is not None]
        requests = [request for request, _ in posed]
        prompts = [prompt for _, prompt in posed]
        with stopwatch.phase("rollout"):
            jobs = [GenerationJob(p, self._seeds(r, step)) for r, p in posed]
            rollouts = self._generate(jobs)
        with stopwatch.phase("reward"):
            return self._score(requests, prompts, rollouts)

    def _encode(self, request: Request, step: int) -> Prompt | None:
        variant = request.variant
        try:
            return self.encoder.encode(variant, derive_seed(self.seed, "image", step, *variant.key))
        except UserError as error:
            if self.on_bad_row == "stop":
                raise
            self.skipped.append(f"{variant.kind} variant of {variant.problem.id}: {error}")
            return None

    def _generate(self, jobs: Sequence[GenerationJob]) -> list[list[Rollout]]:
        """One list a job; a job without seeds, which only wants its prompt encoded, never reaches the engine."""
        wanted = [job for job in jobs if job.seeds]
        found = iter(self.engine.generate(wanted, self.sampling) if wanted else ())
        return [next(found) if job.seeds else [] for job in jobs]

    def _score(
        self, requests: Sequence[Request], prompts: Sequence[Prompt], rollouts: Sequence[Sequence[Rollout]]
    ) -> list[ScoredGroup]:
        texts = [rollout.text for group in rollouts for rollout in group]
        problems = [r.variant.problem for r, group in zip(requests, rollouts, strict=True) for _ in group]
        lengths = [len(rollout.token_ids) for group in rollouts for rollout in group]
        scores = iter(self.reward(texts, problems, lengths) if texts else ())
        return [
            ScoredGroup(request, prompt, tuple(group), tuple(next(scores) for _ in group))
            for request, prompt, group in zip(requests, prompts, rollouts, strict=True)
        ]

    def _seeds(self, request: Request, step: int) -> tuple[int, ...]:
        samples = range(request.first_sample, request.first_sample + request.num_rollouts)
        return tuple(derive_seed(self.seed, "sample", step, *request.variant.key, i) for i in samples)
