"""One step's update: credited rollouts in, changed weights out."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor

from diva_engine.algorithm.losses import Loss, TokenBatch
from diva_engine.config import Config
from diva_engine.ops.policy_loss import PolicyLoss, PolicyLossMetrics
from diva_engine.policy.forward import answer_logprobs
from diva_engine.policy.model import Policy
from diva_engine.policy.packing import plan_micro_batches, split_trees
from diva_engine.records import AnswerTree, Credit, ScoredGroup, UserError
from diva_engine.trainer.master_weights import MasterWeights
from diva_engine.trainer.reference import frozen_logprobs


@dataclass(frozen=True)
class Example:
    """A prompt's trained answers with the credit of every trained token."""

    tree: AnswerTree
    advantage: Tensor  # [T] in the tree's token order
    sampler_logprob: Tensor  # [T]; NaN on prefix tokens, which nobody sampled
    ref_logprob: Tensor | None = None  # [T] under the starting weights, where the loss has a KL term


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
    """Owns the optimizer and its schedule; turns a step's credit into weight changes.

    `reference` holds the starting weights where the loss has a KL term; then rollouts without credit are trained too.
    """

    def __init__(
        self, policy: Policy, loss: Loss, config: Config, num_steps: int, reference: Policy | None = None
    ) -> None:
        self.policy, self.loss, self.config, self.reference = policy, loss, config, reference
        optim = config.worker.actor.optim
        self.weights = MasterWeights(p for p in policy.model.parameters() if p.requires_grad)
        self.optimizer = torch.optim.AdamW(
            self.weights.masters, lr=optim.lr, betas=(optim.betas[0], optim.betas[1]), weight_decay=optim.weight_decay
        )
        self.learning_rate_factor = learning_rate_factor(config, num_steps)
        self.num_updates = 0

    def update(self, groups: Sequence[ScoredGroup], credit: Credit) -> dict[str, float]:
        """One or more optimizer steps on the step's rollouts. Rollouts without credit cost no forward or backward."""
        actor = self.config.worker.actor
        prompts_per_batch = actor.global_batch_size or max(1, len(groups))
        batches = split_batches(groups, credit, prompts_per_batch, keep_all=self.reference is not None)
        batches = [with_short_trees(batch, actor.micro_batch_tokens) for batch in batches]
        if self.reference is not None:
            batches = [self._with_reference(batch, self.reference) for batch in batches]
        learning_rate = self._set_learning_rate()
        # With a single optimizer step the weights are still those that the ratio is taken against: no extra forward.
        is_single = len(batches) * actor.ppo_epochs == 1
        old = [None if is_single else self._logprobs_of(self.policy, batch) for batch in batches]
        steps = [
            self._optimizer_step(*pair) for _ in range(actor.ppo_epochs) for pair in zip(batches, old, strict=True)
        ]
        self.num_updates += 1
        trained = sum(len(example.tree.branches) for batch in batches for example in batch.examples)
        return _mean_of(steps) | {"actor/lr": learning_rate, "actor/trained_rollouts": float(trained)}

    def state_dict(self) -> dict[str, Any]:
        optimizer, masters = self.optimizer.state_dict(), self.weights.state()
        return {"optimizer": optimizer, "masters": masters, "num_updates": self.num_updates}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises UserError where the checkpoint trained other parameters."""
        try:
            self.optimizer.load_state_dict(state["optimizer"])
        except ValueError as error:
            raise UserError(
                f"the checkpoint's optimizer is of other parameters ({error}); restore "
                "worker.actor.model.freeze_vision_tower or start anew"
            ) from None
        self.weights.load_state(state["masters"])
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
        norm = torch.nn.utils.clip_grad_norm_(self.weights.masters, actor.max_grad_norm or math.inf)
        self._refuse_broken(norm)
        self.optimizer.step()
        self.weights.write_back()
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
        temperature = self.config.worker.rollout.temperature
        logprob, entropy = answer_logprobs(self.policy, [e.tree for e in examples], temperature=temperature)
        lengths = [length for example in examples for length in example.tree.sequence_lengths]
        tokens = TokenBatch(
            logprob=logprob,
            old_logprob=logprob.detach() if old_logprob is None else old_logprob,
            sampler_logprob=torch.cat([e.sampler_logprob for e in examples]).to(logprob.device),
            advantage=torch.cat([e.advantage for e in examples]).to(logprob.device),
            offsets=torch.tensor([0, *accumulate(lengths)], device=logprob.device),
            ref_logprob=_joined([e.ref_logprob for e in examples]),
        )
        result = self.loss(tokens, self.config, divisor)
        result.loss.backward()
        self.weights.take_gradients()
        return result, tokens, entropy.detach()

    def _refuse_broken(self, norm: Tensor) -> None:
        if not torch.isfinite(norm):
            raise UserError(
                f"the gradient is {float(norm)}; the weights are left as they were. "
                "Lower worker.actor.optim.lr, or look into the step's rollouts for broken rows"
            )

    def _logprobs_of(self, policy: Policy, batch: Batch) -> list[Tensor]:
        """Per example, the log-probabilities of its trained tokens under a policy as it is now, without gradient."""
        actor, temperature = self.config.worker.actor, self.config.worker.rollout.temperature
        trees = [example.tree for example in batch.examples]
        return frozen_logprobs(policy, trees, max_tokens=actor.micro_batch_tokens, temperature=temperature)

    def _with_reference(self, batch: Batch, reference: Policy) -> Batch:
        logprobs = self._logprobs_of(reference, batch)
        pairs = zip(batch.examples, logprobs, strict=True)
        return replace(batch, examples=[replace(example, ref_logprob=logprob) for example, logprob in pairs])


def split_batches(
    groups: Sequence[ScoredGroup], credit: Credit, prompts_per_batch: int, *, keep_all: bool = False
) -> list[Batch]:
    """The step's groups in order, cut into optimizer steps; each keeps its credited rollouts as examples, or, with
    `keep_all`, every rollout."""
    advantages = credit.advantage.split([len(group.rollouts) for group in groups])
    weights = credit.prefix_weight.tolist()
    batches = []
    for span in _batch_spans(groups, prompts_per_batch):
        found = (make_example(groups[i], advantages[i], weights[i], keep_all=keep_all) for i in span)
        rollouts = [rollout for i in span for rollout in groups[i].rollouts]
        batches.append(
            Batch(
                examples=[example for example in found if example is not None],
                num_tokens=sum(len(rollout.token_ids) for rollout in rollouts),
                num_rollouts=len(rollouts),
            )
        )
    return batches


def with_short_trees(batch: Batch, max_tokens: int) -> Batch:
    """The batch with trees longer than `max_tokens` split, as far as single answers allow; the trained tokens stay."""
    return replace(batch, examples=[part for example in batch.examples for part in _split(example, max_tokens)])


def _split(example: Example, max_tokens: int) -> list[Example]:
    trees = split_trees([example.tree], max_tokens)
    sizes = [sum(tree.sequence_lengths) for tree in trees]
    advantages, logprobs = example.advantage.split(sizes), example.sampler_logprob.split(sizes)
    return [Example(*part) for part in zip(trees, advantages, logprobs, strict=True)]


def _batch_spans(groups: Sequence[ScoredGroup], prompts_per_batch: int) -> list[range]:
    """Which groups each optimizer step takes: one span at least. A group without rollouts, of which only the prefix is
    trained, goes with the one before it: alone it would have no sampled tokens to be divided by."""
    asked = [i for i, group in enumerate(groups) if group.rollouts]
    starts = [0, *asked[prompts_per_batch::prompts_per_batch]]
    return [range(*span) for span in pairwise([*starts, len(groups)])]


def make_example(
    group: ScoredGroup, advantage: Tensor, prefix_weight: float, *, keep_all: bool = False
) -> Example | None:
    """The group's credited answers as one tree (all answers with `keep_all`), or None where it has none."""
    has_credit = [keep_all or value != 0 for value in advantage.tolist()]
    kept = [i for i, rollout in enumerate(group.rollouts) if has_credit[i] and rollout.token_ids]
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
    """Linear warm-up, then constant, or a linear or cosine decay that would reach 0 in the step after the last."""
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


def _joined(parts: Sequence[Tensor | None]) -> Tensor | None:
    """All parts in one tensor; None where there are none."""
    found = [part for part in parts if part is not None]
    return torch.cat(found) if found else None


def _mean_of(metrics: Sequence[Mapping[str, float]]) -> dict[str, float]:
    names = {name: None for found in metrics for name in found}  # a dict keeps the order
    values = {name: [found[name] for found in metrics if name in found] for name in names}
    return {name: sum(found) / len(found) for name, found in values.items()}
