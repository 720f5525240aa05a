"""One step's update: credited rollouts in, changed weights out."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from diva_engine.algorithm.losses import Loss, TokenBatch
from diva_engine.config import Config
from diva_engine.ops.policy_loss import PolicyLoss, PolicyLossMetrics
from diva_engine.policy.forward import answer_logprobs
from diva_engine.policy.model import Policy
from diva_engine.policy.packing import plan_micro_batches
from diva_engine.records import AnswerTree, Credit, ScoredGroup, UserError


@dataclass(frozen=True)
class Example:
    """A prompt's trained answers with the credit of every trained token."""

    tree: AnswerTree
    advantage: Tensor  # [T] in the tree's token order
    sampler_logprob: Tensor  # [T]; NaN on prefix tokens, which nobody sampled


@dataclass(frozen=True)
class Batch:
    """What one optimizer step sees: the examples that carry credit, and the size of all that was sampled."""

    examples: list[Example]
    num_tokens: int  # sampled tokens, of rollouts without credit too
    num_rollouts: int

    def divisor(self, loss_avg_mode: str, max_response_length: int) -> float:
        if loss_avg_mode == "token":
            return float(max(1, self.num_tokens))
        per_rollout = max_response_length if loss_avg_mode == "constant" else 1
        return float(max(1, self.num_rollouts) * per_rollout)


class Updater:
    """Owns the optimizer and its schedule; turns a step's credit into weight changes."""

    def __init__(self, policy: Policy, loss: Loss, config: Config, num_steps: int) -> None:
        self.policy, self.loss, self.config = policy, loss, config
        optim = config.worker.actor.optim
        self.parameters = [p for p in policy.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=optim.lr, betas=(optim.betas[0], optim.betas[1]), weight_decay=optim.weight_decay
        )
        self.learning_rate_factor = learning_rate_factor(config, num_steps)
        self.num_updates = 0

    def update(self, groups: Sequence[ScoredGroup], credit: Credit) -> dict[str, float]:
        """One or more optimizer steps on the step's rollouts. Rollouts without credit cost no forward or backward."""
        actor = self.config.worker.actor
        batches = split_batches(groups, credit, actor.global_batch_size or len(groups))
        learning_rate = self._set_learning_rate()
        # With a single optimizer step the weights are still those that the ratio is taken against: no extra forward.
        is_single = len(batches) * actor.ppo_epochs == 1
        old = [None if is_single else self._logprobs_now(batch.examples) for batch in batches]
        steps = [
            self._optimizer_step(*pair) for _ in range(actor.ppo_epochs) for pair in zip(batches, old, strict=True)
        ]
        self.num_updates += 1
        trained = sum(len(example.tree.branches) for batch in batches for example in batch.examples)
        return _mean_of(steps) | {"actor/lr": learning_rate, "actor/trained_rollouts": float(trained)}

    def state_dict(self) -> dict[str, Any]:
        return {"optimizer": self.optimizer.state_dict(), "num_updates": self.num_updates}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        self.num_updates = state["num_updates"]

    def _set_learning_rate(self) -> float:
        learning_rate = self.config.worker.actor.optim.lr * self.learning_rate_factor(self.num_updates)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        return learning_rate

    def _optimizer_step(self, batch: Batch, old_logprobs: list[Tensor] | None) -> dict[str, float]:
        actor = self.config.worker.actor
        divisor = batch.divisor(actor.loss_avg_mode, self.config.data.max_response_length)
        self.optimizer.zero_grad(set_to_none=True)
        losses, entropies, gaps, metrics = [], [], [], []
        for chosen in plan_micro_batches([example.tree for example in batch.examples], actor.micro_batch_tokens):
            examples = [batch.examples[i] for i in chosen]
            frozen = None if old_logprobs is None else torch.cat([old_logprobs[i] for i in chosen])
            result, tokens, entropy = self._backward(examples, frozen, divisor)
            losses.append(float(result.loss.detach()))
            metrics.append(result.metrics)
            entropies.append(entropy)
            gaps.append((tokens.old_logprob - tokens.sampler_logprob).abs())
        if not batch.examples:
            return {"actor/loss": 0.0, "actor/grad_norm": 0.0}
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, actor.max_grad_norm or math.inf)
        self._refuse_broken(norm)
        self.optimizer.step()
        means = _loss_metrics(metrics, with_sampler=actor.importance_truncation > 0)
        return means | {
            "actor/loss": sum(losses),
            "actor/grad_norm": float(norm),
            "actor/entropy": float(torch.cat(entropies).mean()),
            **_gap_metrics(torch.cat(gaps)),
        }

    def _backward(
        self, examples: list[Example], old_logprob: Tensor | None, divisor: float
    ) -> tuple[PolicyLoss, TokenBatch, Tensor]:
        """Adds the micro-batch's gradient to the weights'; returns its loss, its tokens and their entropies [T]."""
        actor, temperature = self.config.worker.actor, self.config.worker.rollout.temperature
        logprob, entropy = answer_logprobs(self.policy, [e.tree for e in examples], temperature=temperature)
        lengths = [length for example in examples for length in example.tree.sequence_lengths]
        tokens = TokenBatch(
            logprob=logprob,
            old_logprob=logprob.detach() if old_logprob is None else old_logprob,
            sampler_logprob=torch.cat([e.sampler_logprob for e in examples]).to(logprob.device),
            advantage=torch.cat([e.advantage for e in examples]).to(logprob.device),
            offsets=torch.tensor([0, *accumulate(lengths)], device=logprob.device),
        )
        result = self.loss(tokens, actor, divisor)
        result.loss.backward()
        return result, tokens, entropy.detach()

    def _refuse_broken(self, norm: Tensor) -> None:
        if not torch.isfinite(norm):
            raise UserError(
                f"the gradient is {float(norm)}; the weights are left as they were. "
                "Lower worker.actor.optim.lr, or look into the step's rollouts for broken rows"
            )

    @torch.no_grad()
    def _logprobs_now(self, examples: list[Example]) -> list[Tensor]:
        """Per example, the log-probabilities of its trained tokens under the weights before the step's first update."""
        actor, temperature = self.config.worker.actor, self.config.worker.rollout.temperature
        found: dict[int, Tensor] = {}
        for chosen in plan_micro_batches([example.tree for example in examples], actor.micro_batch_tokens):
            trees = [examples[i].tree for i in chosen]
            logprob, _ = answer_logprobs(self.policy, trees, temperature=temperature)
            found.update(zip(chosen, logprob.split([sum(t.sequence_lengths) for t in trees]), strict=True))
        return [found[i] for i in range(len(examples))]


def split_batches(groups: Sequence[ScoredGroup], credit: Credit, prompts_per_batch: int) -> list[Batch]:
    """The step's groups in order, cut into optimizer steps; each keeps its credited rollouts as examples."""
    advantages = credit.advantage.split([len(group.rollouts) for group in groups])
    weights = credit.prefix_weight.tolist()
    batches = []
    for start in range(0, len(groups), prompts_per_batch):
        span = range(start, min(start + prompts_per_batch, len(groups)))
        found = (make_example(groups[i], advantages[i], weights[i]) for i in span)
        rollouts = [rollout for i in span for rollout in groups[i].rollouts]
        batches.append(
            Batch(
                examples=[example for example in found if example is not None],
                num_tokens=sum(len(rollout.token_ids) for rollout in rollouts),
                num_rollouts=len(rollouts),
            )
        )
    return batches


def make_example(group: ScoredGroup, advantage: Tensor, prefix_weight: float) -> Example | None:
    """The group's credited answers as one tree, or None where nothing in it carries credit."""
    kept = [i for i, value in enumerate(advantage.tolist()) if value != 0 and group.rollouts[i].token_ids]
    train_prefix = prefix_weight != 0 and len(group.prompt.prefix_ids) > 0
    if not kept and not train_prefix:
        return None
    rollouts = [group.rollouts[i] for i in kept]
    tree = AnswerTree(group.prompt, tuple(rollout.token_ids for rollout in rollouts), train_prefix)
    credit = [advantage[i].expand(len(rollout.token_ids)) for i, rollout in zip(kept, rollouts, strict=True)]
    sampled = [torch.tensor(rollout.logprobs) for rollout in rollouts]
    if train_prefix:
        length = len(group.prompt.prefix_ids)
        credit.insert(0, torch.full((length,), prefix_weight))
        sampled.insert(0, torch.full((length,), math.nan))
    return Example(tree, torch.cat(credit), torch.cat(sampled))


def learning_rate_factor(config: Config, num_steps: int) -> Callable[[int], float]:
    """Linear warm-up, then constant, linear or cosine decay to 0 at the last step."""
    optim = config.worker.actor.optim

    def factor(step: int) -> float:
        if step < optim.lr_warmup_steps:
            return (step + 1) / optim.lr_warmup_steps
        done = (step - optim.lr_warmup_steps) / max(1, num_steps - optim.lr_warmup_steps)
        shapes = {"constant": 1.0, "linear": 1.0 - done, "cosine": 0.5 * (1.0 + math.cos(math.pi * done))}
        return max(0.0, shapes[optim.lr_scheduler_type])

    return factor


def _loss_metrics(parts: Sequence[PolicyLossMetrics], *, with_sampler: bool) -> dict[str, float]:
    """Means over the micro-batches' tokens; the sampler's only where the loss was given its log-probabilities."""
    means = PolicyLossMetrics.merge(parts).means()
    return {f"actor/{n}": float(value) for n, value in means.items() if with_sampler or not n.startswith("sampler_")}


def _gap_metrics(gaps: Tensor) -> dict[str, float]:
    """How far the sampler's log-probabilities lie from the trainer's; [T], NaN on prefix tokens: nobody sampled
    them."""
    sampled = gaps[~gaps.isnan()]
    if not len(sampled):
        return {}
    return {"sync/logprob_gap_mean": float(sampled.mean()), "sync/logprob_gap_max": float(sampled.max())}


def _mean_of(metrics: Sequence[Mapping[str, float]]) -> dict[str, float]:
    names = {name: None for found in metrics for name in found}  # a dict keeps the order
    values = {name: [found[name] for found in metrics if name in found] for name in names}
    return {name: sum(found) / len(found) for name, found in values.items()}
