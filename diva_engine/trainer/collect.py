"""Rollouts for a step: runs a recipe's plan stage by stage, from requests to scored groups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from diva_engine.algorithm.plans import PlanRun
from diva_engine.data.prefetch import Encoder, PromptPrefetcher
from diva_engine.distributed import current_world, gather_results, sum_over_all
from diva_engine.records import (
    GenerationJob,
    Prompt,
    Request,
    RewardFunction,
    RolloutEngine,
    Sampling,
    ScoredGroup,
    UserError,
    Variant,
)
from diva_engine.seeds import derive_seed
from diva_engine.trainer.engine_restart import EngineFailed, RestartedEngine
from diva_engine.trainer.scoring import Scored, Scoring
from diva_engine.trainer.shares import Answered, holders_of, shared
from diva_engine.trainer.stopwatch import Stopwatch


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
    overlap: bool = True  # score answers while others are generated, where the reward allows it
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

        Each rank poses, answers and scores its share of the requests; all of them return all groups, the prompts of
        others without their pixels. A request whose prompt is too long or whose image does not decode is left out and
        noted in `skipped`, or, with on_bad_row="stop", raised as `UserError`.
        """
        scored: Scored = {}
        try:
            return self._ask(requests, step, stopwatch, scored)
        except EngineFailed as failure:
            if not isinstance(self.engine, RestartedEngine):
                raise
            self.engine.restart_on_all_ranks(failure)
            return self._ask(requests, step, stopwatch, scored)

    def _ask(self, requests: Sequence[Request], step: int, stopwatch: Stopwatch, scored: Scored) -> list[ScoredGroup]:
        world = current_world()
        holders = holders_of(requests)
        own = [request for request, holder in zip(requests, holders, strict=True) if holder == world.rank]
        tried: list[Prompt | str] = []
        with stopwatch.phase("prompts"):
            # All ranks hear of a prompt that stops the run before any asks its engine, which several may hold together.
            gather_results(lambda: tried.extend(self._encode(request, step) for request in own))
        answered = shared(lambda: self._answer(list(zip(own, tried, strict=True)), step, stopwatch, scored), holders)
        self.skipped.extend(found for found in answered if isinstance(found, str))
        return [
            ScoredGroup(request, found.prompt, found.rollouts, found.scores)
            for request, found in zip(requests, answered, strict=True)
            if not isinstance(found, str)
        ]

    def _answer(
        self, tried: Sequence[tuple[Request, Prompt | str]], step: int, stopwatch: Stopwatch, scored: Scored
    ) -> list[Answered | str]:
        """What came of each request, whose prompt or why it could not be posed stands beside it."""
        posed = [(request, found) for request, found in tried if not isinstance(found, str)]
        # A request for no rollouts only wants its prompt encoded. The engine is asked even for nothing: other ranks may
        # hold it together with this one.
        wanted = [(request, prompt) for request, prompt in posed if request.num_rollouts]
        jobs = [GenerationJob(prompt, self._seeds(request, step)) for request, prompt in wanted]
        with Scoring(self.reward, [request.variant.problem for request, _ in wanted], scored) as scoring:
            on_answered = scoring.take if self.overlap and self.reward.scores_alone else None
            with stopwatch.phase("rollout"):
                rollouts = self.engine.generate(jobs, self.sampling, on_answered)
            with stopwatch.phase("reward"):
                scores = scoring.finish(rollouts)
        answers = iter(zip(map(tuple, rollouts), scores, strict=True))
        own = [next(answers) if request.num_rollouts else ((), ()) for request, _ in posed]
        done = iter([Answered(prompt, *found) for (_, prompt), found in zip(posed, own, strict=True)])
        return [found if isinstance(found, str) else next(done) for _, found in tried]

    def prefetch(self, requests: Sequence[Request], step: int) -> None:
        """Has the prompts that `step` will probably ask encoded in the background, where the encoder can."""
        if isinstance(self.encoder, PromptPrefetcher):
            rank, pairs = current_world().rank, zip(requests, holders_of(requests), strict=True)
            own = [request.variant for request, holder in pairs if holder == rank]
            self.encoder.prefetch([(variant, image_key(self.seed, step, variant)) for variant in own], step)

    def take_prefetch_metrics(self) -> dict[str, float]:
        """How far prefetching got since the last call; it depends on timing, as no other number of a step does."""
        if isinstance(self.encoder, PromptPrefetcher):
            return {"throughput/prefetched": self.encoder.take_share()}
        return {}

    def take_reward_counters(self) -> dict[str, float]:
        """What the rewards of all ranks met since the last call, as metrics. A collective call."""
        return {f"reward/{name}": float(count) for name, count in sum_over_all(self.reward.take_counters()).items()}

    def close(self) -> None:
        """Ends the background thread, if there is one, and the engine."""
        if isinstance(self.encoder, PromptPrefetcher):
            self.encoder.close()
        self.engine.close()

    def _encode(self, request: Request, step: int) -> Prompt | str:
        variant = request.variant
        try:
            prompt = self.encoder.encode(variant, image_key(self.seed, step, variant))
        except UserError as error:
            if self.on_bad_row == "stop":
                raise
            return f"{variant.kind} variant of {variant.problem.id}: {error}"
        return replace(prompt, holder=current_world().rank)

    def _seeds(self, request: Request, step: int) -> tuple[int, ...]:
        samples = range(request.first_sample, request.first_sample + request.num_rollouts)
        return tuple(derive_seed(self.seed, "sample", step, *request.variant.key, i) for i in samples)


def image_key(seed: int, step: int, variant: Variant) -> int:
    """What a variant's noise in a step is drawn from."""
    return derive_seed(seed, "image", step, *variant.key)
