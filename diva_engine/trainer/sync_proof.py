"""Whether an engine with a copy of the weights has the trainer's, by the answers of a validation.

A step's own rollouts prove the sync before them. After the last step nothing is trained any more, but what validation
measures is the engine's weights.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from diva_engine.config import Config
from diva_engine.distributed import current_world, gather_from_all
from diva_engine.policy.model import Policy
from diva_engine.records import AnswerTree, ScoredGroup
from diva_engine.trainer.faults import StepFailed
from diva_engine.trainer.mismatch import describe_gap
from diva_engine.trainer.reference import frozen_logprobs

# Of a rank's answers and of an answer's tokens: weights that did not arrive show in a few.
_NUM_ANSWERS = 2
_NUM_TOKENS = 16


def prove_sync(config: Config, policy: Policy, groups: Sequence[ScoredGroup]) -> dict[str, float]:
    """The largest gap between trainer and engine over the first tokens of a few greedy answers, as a metric.

    None where the engine samples on the policy's own weights. A collective call, in which each rank reads answers to
    its own prompts. Raises StepFailed on all ranks where the gap is above `worker.rollout.max_logprob_gap`.
    """
    if config.worker.rollout.engine == "native" and policy.holds_weights:
        return {}
    chosen = _own_answers(groups)
    trees = [AnswerTree(group.prompt, (group.rollouts[0].token_ids[:_NUM_TOKENS],)) for group in chosen]
    max_tokens = config.worker.actor.micro_batch_tokens
    # Greedy answers report log-probabilities at temperature 1.
    found = frozen_logprobs(policy, trees, max_tokens=max_tokens, temperature=1.0)
    sampled = [torch.tensor(group.rollouts[0].logprobs[:_NUM_TOKENS]) for group in chosen]
    gaps = [float((ours.cpu() - theirs).abs().max()) for ours, theirs in zip(found, sampled, strict=True)]
    gap, bound = max(gather_from_all(max(gaps, default=0.0))), config.worker.max_logprob_gap
    if bound and not gap <= bound:
        raise StepFailed(describe_gap(gap, bound))
    return {"sync/validation_gap_max": gap}


def _own_answers(groups: Sequence[ScoredGroup]) -> list[ScoredGroup]:
    """The first groups whose pixels this rank has."""
    rank = current_world().rank
    return [group for group in groups if group.prompt.holder == rank and group.rollouts[0].token_ids][:_NUM_ANSWERS]
