"""One step's update: credited rollouts in, changed weights out."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from diva_engine.algorithm.losses import Loss
from diva_engine.config import Config
from diva_engine.distributed import gather_from_all, max_over_all
from diva_engine.policy.model import Policy
from diva_engine.policy.weights import whole
from diva_engine.records import Credit, ScoredGroup, UserError
from diva_engine.trainer.batches import Batch, own_share, split_batches
from diva_engine.trainer.faults import FaultLog, StepFailed
from diva_engine.trainer.gradient import GradientPass
from diva_engine.trainer.host_moments import HostMoments
from diva_engine.trainer.master_weights import MasterWeights
from diva_engine.trainer.memory import with_half_on_lack
from diva_engine.trainer.mismatch import GAP_MAX, describe_gap
from diva_engine.trainer.optimizer_state import OptimizerState
from diva_engine.trainer.reference import frozen_logprobs
from diva_engine.trainer.skipped_batches import FOLDER, save_batch


class Updater:
    """Owns the optimizer and its schedule; turns a step's credit into weight changes.

    `reference` holds the starting weights where the loss has a KL term; then rollouts without credit are trained too.
    """

    def __init__(
        self,
        policy: Policy,
        loss: Loss,
        config: Config,
        num_steps: int,
        reference: Policy | None = None,
        *,
        faults: FaultLog | None = None,
    ) -> None:
        self.policy, self.config, self.reference = policy, config, reference
        self.faults = faults or FaultLog()
        optim = config.worker.actor.optim
        trained = {name: p for name, p in policy.model.named_parameters() if p.requires_grad}
        self.weights = MasterWeights(trained.values())
        is_on_gpu = all(master.is_cuda for master in self.weights.masters)
        self.optimizer = torch.optim.AdamW(
            self.weights.masters,
            lr=optim.lr,
            betas=(optim.betas[0], optim.betas[1]),
            weight_decay=optim.weight_decay,
            fused=is_on_gpu,
        )
        is_offloaded = is_on_gpu and config.worker.actor.offload.offload_optimizer
        self.host_moments = HostMoments(self.optimizer) if is_offloaded else None
        self.optimizer_state = OptimizerState(list(trained), self.optimizer, self.weights)
        self.learning_rate_factor = learning_rate_factor(config, num_steps)
        self.gradient_pass = GradientPass(policy, loss, config, self.weights)
        self.num_updates = 0
        self.skipped_in_a_row = 0  # optimizer steps
        self.has_moved = False  # in an update that is under way, by an optimizer step

    def update(self, groups: Sequence[ScoredGroup], credit: Credit) -> dict[str, float]:
        """One or more optimizer steps on the step's rollouts. Rollouts without credit cost no forward or backward."""
        actor = self.config.worker.actor
        prompts_per_batch = actor.global_batch_size or max(1, len(groups))
        batches = split_batches(groups, credit, prompts_per_batch, keep_all=self.reference is not None)
        trained = sum(len(example.tree.branches) for batch in batches for example in batch.examples)
        batches = [own_share(batch) for batch in batches]
        if self.reference is not None:
            batches = [self._with_reference(batch, self.reference) for batch in batches]
        # With a single optimizer step the weights are still those that the ratio is taken against: no extra forward.
        if len(batches) * actor.ppo_epochs > 1:
            batches = [self._with_old(batch) for batch in batches]
        learning_rate = self._set_learning_rate()
        steps = [self._optimizer_step(batch) for _ in range(actor.ppo_epochs) for batch in batches]
        self.num_updates += 1
        self.has_moved = False
        return _mean_of(steps) | {"actor/lr": learning_rate, "actor/trained_rollouts": float(trained)}

    def why_stuck(self) -> str:
        """Why the run should end, in words, after too many skipped optimizer steps in a row; else empty."""
        bound = self.config.trainer.max_skipped_steps
        if self.skipped_in_a_row <= bound:
            return ""
        return (
            f"{self.skipped_in_a_row} optimizer steps in a row had a loss or gradient that was not finite "
            f"(trainer.max_skipped_steps={bound}); lower worker.actor.optim.lr, or look at their batches in "
            f"{FOLDER} of the run's folder"
        )

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint holds as sharded tensors: masters and moments, as they are, not copied."""
        return self.optimizer_state.tensors()

    def state_dict(self) -> dict[str, Any]:
        """The rest, in plain values."""
        return {
            "torch_dtype": self.config.worker.actor.model.torch_dtype,
            "optimizer": self.optimizer_state.state_dict(),
            "num_updates": self.num_updates,
            "skipped_in_a_row": self.skipped_in_a_row,
        }

    def load_state_dict(self, state: Mapping[str, Any], read: Callable[[Mapping[str, Tensor]], None]) -> None:
        """`read` fills tensors in place by their names. Raises UserError where the checkpoint trained other
        parameters, or in another type."""
        if state["torch_dtype"] != self.config.worker.actor.model.torch_dtype:
            raise UserError("the checkpoint's weights are of another type; restore worker.actor.model.torch_dtype")
        self.optimizer_state.load(state["optimizer"], read)
        if self.host_moments is not None:
            self.host_moments.put_away()
        self.num_updates = state["num_updates"]
        self.skipped_in_a_row = state["skipped_in_a_row"]

    def _set_learning_rate(self) -> float:
        learning_rate = self.config.worker.actor.optim.lr * self.learning_rate_factor(self.num_updates)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        return learning_rate

    def _optimizer_step(self, batch: Batch) -> dict[str, float]:
        """Moves the weights, unless the loss or the gradient is not finite: then the batch is kept for a look at it."""
        if not max_over_all(len(batch.examples)):
            return {"actor/loss": 0.0, "actor/grad_norm": 0.0}
        loss, metrics = self._gradient(batch)
        max_norm = self.config.worker.actor.max_grad_norm or math.inf
        norm = float(whole(torch.nn.utils.clip_grad_norm_(self.weights.masters, max_norm)))
        if not all(gather_from_all(math.isfinite(loss) and math.isfinite(norm))):
            self._skip(batch, loss, norm)
            return {}
        self._refuse_gap(metrics.get(GAP_MAX, 0.0))
        with nullcontext() if self.host_moments is None else self.host_moments.on_device():
            self.optimizer.step()
        self.weights.write_back()
        self.weights.clear_gradients()  # their memory is the next rollouts'
        self.has_moved, self.skipped_in_a_row = True, 0
        return metrics | {"actor/loss": loss, "actor/grad_norm": norm}

    def _refuse_gap(self, gap: float) -> None:
        """Raises StepFailed where engine and trainer disagree on what was sampled; on all ranks."""
        bound = self.config.worker.max_logprob_gap
        gap = max(gather_from_all(gap))
        if bound and not gap <= bound:
            raise StepFailed(describe_gap(gap, bound))

    def _gradient(self, batch: Batch) -> tuple[float, dict[str, float]]:
        """The batch's loss and its metrics; its gradient lies with the weights."""
        work = partial(self.gradient_pass.run, batch)
        return with_half_on_lack(work, self.config.worker.actor.micro_batch_tokens, self.faults, "the update")

    def _skip(self, batch: Batch, loss: float, norm: float) -> None:
        self.skipped_in_a_row += 1
        self.weights.clear_gradients()
        run_dir = self.faults.run_dir
        detail = f"loss {loss}, gradient norm {norm}"
        if run_dir is not None:
            detail += f"; {save_batch(run_dir, self.faults.step, batch)}"
        self.faults.record(
            "actor/skipped_steps",
            "a loss or gradient was not finite: the optimizer step is skipped and its batch kept in skipped_batches",
            detail=detail,
        )

    def _logprobs_of(self, policy: Policy, batch: Batch) -> list[Tensor]:
        """Per example, the log-probabilities of its trained tokens under a policy as it is now, without gradient."""
        trees, temperature = [example.tree for example in batch.examples], self.config.worker.rollout.temperature

        def work(max_tokens: int) -> list[Tensor]:
            return frozen_logprobs(policy, trees, max_tokens=max_tokens, temperature=temperature)

        return with_half_on_lack(work, self.config.worker.actor.micro_batch_tokens, self.faults, "a forward pass")

    def _with_old(self, batch: Batch) -> Batch:
        pairs = zip(batch.examples, self._logprobs_of(self.policy, batch), strict=True)
        return replace(batch, examples=[replace(example, old_logprob=logprob) for example, logprob in pairs])

    def _with_reference(self, batch: Batch, reference: Policy) -> Batch:
        logprobs = self._logprobs_of(reference, batch)
        pairs = zip(batch.examples, logprobs, strict=True)
        return replace(batch, examples=[replace(example, ref_logprob=logprob) for example, logprob in pairs])


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


def _mean_of(metrics: Sequence[Mapping[str, float]]) -> dict[str, float]:
    names = {name: None for found in metrics for name in found}  # a dict keeps the order
    values = {name: [found[name] for found in metrics if name in found] for name in names}
    return {name: sum(found) / len(found) for name, found in values.items()}
