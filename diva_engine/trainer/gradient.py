"""Forward and backward over one optimizer step's batch, micro-batch by micro-batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from diva_engine.algorithm.losses import Loss, TokenBatch
from diva_engine.config import Config
from diva_engine.distributed import gather_from_all, max_over_all
from diva_engine.ops.policy_loss import PolicyLossMetrics
from diva_engine.policy.forward import answer_logprobs
from diva_engine.policy.model import Policy
from diva_engine.policy.packing import plan_micro_batches
from diva_engine.trainer.batches import Batch, Example, with_short_trees
from diva_engine.trainer.master_weights import MasterWeights
from diva_engine.trainer.mismatch import mismatch_metrics


@dataclass(frozen=True)
class Seen:
    """What a micro-batch showed, on the CPU."""

    loss: float
    metrics: PolicyLossMetrics
    entropy: Tensor  # [T]
    log_ratio: Tensor  # [T] trainer over sampler; NaN on prefix tokens, which nobody sampled


@dataclass(frozen=True)
class GradientPass:
    """Leaves the gradient of a batch's loss with the weights."""

    policy: Policy
    loss: Loss
    config: Config
    weights: MasterWeights

    def run(self, batch: Batch, max_tokens: int) -> tuple[float, dict[str, float]]:
        """The loss of the batch, of which some rank has examples, and the step's metrics, both over all ranks; at most
        `max_tokens` tokens go through the model at once. Starts from no gradient, so that a broken-off pass can be
        repeated. A collective call."""
        actor = self.config.worker.actor
        divisor = batch.divisor(actor.loss_avg_mode, self.config.data.max_response_length)
        batch = with_short_trees(batch, max_tokens)
        self.weights.clear_gradients()
        plan = plan_micro_batches([example.tree for example in batch.examples], max_tokens)
        num_passes = max_over_all(len(plan))
        seen = [self._backward([batch.examples[i] for i in chosen], divisor) for chosen in plan]
        for _ in range(num_passes - len(plan)):
            self._accompany()
        seen = [one for found in gather_from_all(seen) for one in found]
        return sum(one.loss for one in seen), {
            **_loss_metrics([one.metrics for one in seen], with_sampler=self.config.worker.importance_truncation > 0),
            "actor/entropy": float(torch.cat([one.entropy for one in seen]).mean()),
            **mismatch_metrics(torch.cat([one.log_ratio for one in seen])),
        }

    def _accompany(self) -> None:
        """Takes part in a forward and backward of the other ranks, adding nothing."""
        logprob, _ = answer_logprobs(self.policy, [])
        logprob.sum().backward()

    def _backward(self, examples: list[Example], divisor: float) -> Seen:
        """Adds the micro-batch's gradient to the weights'."""
        temperature = self.config.worker.rollout.temperature
        logprob, entropy = answer_logprobs(self.policy, [e.tree for e in examples], temperature=temperature)
        lengths = [length for example in examples for length in example.tree.sequence_lengths]
        old_logprob = _joined([e.old_logprob for e in examples], logprob.device)
        tokens = TokenBatch(
            logprob=logprob,
            old_logprob=logprob.detach() if old_logprob is None else old_logprob,
            sampler_logprob=torch.cat([e.sampler_logprob for e in examples]).to(logprob.device),
            advantage=torch.cat([e.advantage for e in examples]).to(logprob.device),
            offsets=torch.tensor([0, *accumulate(lengths)], device=logprob.device),
            ref_logprob=_joined([e.ref_logprob for e in examples], logprob.device),
        )
        result = self.loss(tokens, self.config, divisor)
        result.loss.backward()
        self.weights.take_gradients()
        return Seen(
            loss=float(result.loss.detach()),
            metrics=PolicyLossMetrics(result.metrics.totals.cpu()),
            entropy=entropy.detach().cpu(),
            log_ratio=(tokens.old_logprob - tokens.sampler_logprob).cpu(),
        )


def _loss_metrics(parts: Sequence[PolicyLossMetrics], *, with_sampler: bool) -> dict[str, float]:
    """Means over the micro-batches' tokens; the sampler's only where the loss was given its log-probabilities."""
    means = PolicyLossMetrics.merge(parts).means()
    return {f"actor/{n}": float(value) for n, value in means.items() if with_sampler or not n.startswith("sampler_")}


def _joined(parts: Sequence[Tensor | None], device: torch.device) -> Tensor | None:
    """All parts in one tensor on the device; None where there are none."""
    found = [part for part in parts if part is not None]
    return torch.cat(found).to(device) if found else None
