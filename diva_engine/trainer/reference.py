"""The starting weights as a reference: log-probabilities without gradient, and the divergence as part of the reward."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from diva_engine.config import Config
from diva_engine.distributed import current_world, gather_from_all, max_over_all
from diva_engine.policy.forward import answer_logprobs
from diva_engine.policy.model import Policy
from diva_engine.policy.packing import plan_micro_batches, split_trees
from diva_engine.records import AnswerTree, ScoredGroup


@torch.no_grad()
def frozen_logprobs(
    policy: Policy, trees: Sequence[AnswerTree], *, max_tokens: int, temperature: float
) -> list[Tensor]:
    """Per tree, the log-probabilities [T] of its trained tokens under the policy as it is now.

    A collective call, in which each rank gives trees of its own.
    """
    parts = split_trees(trees, max_tokens)
    plan = plan_micro_batches(parts, max_tokens)
    num_passes = max_over_all(len(plan))
    found = [answer_logprobs(policy, [parts[i] for i in chosen], temperature=temperature)[0] for chosen in plan]
    for _ in range(num_passes - len(plan)):
        answer_logprobs(policy, [])  # for the other ranks
    sizes = [sum(tree.sequence_lengths) for tree in trees]
    return list(torch.cat(found).split(sizes)) if found else []


@dataclass(frozen=True)
class KlReward:
    """Takes kl_coef times an answer's divergence, summed over its tokens, off its reward."""

    reference: Policy
    config: Config

    def __call__(self, groups: Sequence[ScoredGroup], step: int) -> tuple[list[ScoredGroup], dict[str, float]]:
        trees = [AnswerTree(group.prompt, tuple(r.token_ids for r in group.rollouts)) for group in groups]
        asked = [i for i, tree in enumerate(trees) if any(tree.branches)]
        shaped, divergences = list(groups), []
        for i, logprob in sorted(self._logprobs({i: trees[i] for i in asked}).items()):
            divergence = self._divergence_by_answer(groups[i], logprob)
            divergences.append(divergence)
            shaped[i] = self._shaped(groups[i], divergence.tolist())
        return shaped, {"reward/kl": float(torch.cat(divergences).mean())} if divergences else {}

    def _logprobs(self, trees: Mapping[int, AnswerTree]) -> dict[int, Tensor]:
        """Of all trees, [T] each on the CPU; each rank reads those whose pixels it holds."""
        rank = current_world().rank
        own = {i: tree for i, tree in trees.items() if tree.prompt.holder == rank}
        logprobs = frozen_logprobs(
            self.reference,
            list(own.values()),
            max_tokens=self.config.worker.actor.micro_batch_tokens,
            temperature=self.config.worker.rollout.temperature,
        )
        found = gather_from_all({i: logprob.cpu() for i, logprob in zip(own, logprobs, strict=True)})
        return {i: logprob for part in found for i, logprob in part.items()}

    def _divergence_by_answer(self, group: ScoredGroup, ref_logprob: Tensor) -> Tensor:
        """[rollouts of the group], against the log-probabilities with which the answers were sampled."""
        lengths = [len(rollout.token_ids) for rollout in group.rollouts]
        sampled = torch.tensor([logprob for rollout in group.rollouts for logprob in rollout.logprobs])
        per_token = divergence(ref_logprob - sampled, self.config.algorithm.kl_penalty)
        return torch.stack([part.sum() for part in per_token.split(lengths)])

    def _shaped(self, group: ScoredGroup, divergences: Sequence[float]) -> ScoredGroup:
        coefficient = self.config.algorithm.kl_coef
        pairs = zip(group.scores, divergences, strict=True)
        return replace(group, scores=tuple(replace(s, reward=s.reward - coefficient * d) for s, d in pairs))


def divergence(log_ratio: Tensor, estimator: str) -> Tensor:
    """Schulman's estimators of KL(policy, reference) per token, of log_ratio = logp_reference - logp."""
    if estimator == "k1":
        return -log_ratio
    return log_ratio.square() / 2 if estimator == "k2" else log_ratio.exp() - log_ratio - 1
