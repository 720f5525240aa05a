"""A step's rollouts cut into optimizer steps: what each of them trains, and what its loss is divided by."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from diva_engine.policy.packing import split_trees
from diva_engine.records import AnswerTree, Credit, ScoredGroup
from diva_engine.trainer.placement import own_trees


@dataclass(frozen=True)
class Example:
    """A prompt's trained answers with the credit of every trained token."""

    tree: AnswerTree
    advantage: Tensor  # [T] in the tree's token order
    sampler_logprob: Tensor  # [T]; NaN on prefix tokens, which nobody sampled
    ref_logprob: Tensor | None = None  # [T] under the starting weights, where the loss has a KL term
    old_logprob: Tensor | None = None  # [T] under the weights before the step, where it has several optimizer steps
    name: str = ""  # question and variant, for messages


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


def own_share(batch: Batch) -> Batch:
    """The batch with the examples that this rank trains; the sizes stay those of all ranks. A collective call."""
    own = own_trees([example.tree for example in batch.examples])
    return replace(batch, examples=[replace(batch.examples[i], tree=tree) for i, tree in own.items()])


def _split(example: Example, max_tokens: int) -> list[Example]:
    trees = split_trees([example.tree], max_tokens)
    if len(trees) == 1:
        return [example]
    sizes = [sum(tree.sequence_lengths) for tree in trees]
    columns = zip(
        example.advantage.split(sizes),
        example.sampler_logprob.split(sizes),
        _split_or_none(example.ref_logprob, sizes),
        _split_or_none(example.old_logprob, sizes),
        strict=True,
    )
    return [Example(tree, *parts, example.name) for tree, parts in zip(trees, columns, strict=True)]


def _split_or_none(column: Tensor | None, sizes: list[int]) -> Sequence[Tensor | None]:
    return [None] * len(sizes) if column is None else column.split(sizes)


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
    name = f"{group.variant.problem.id}/{group.variant.index}"
    return Example(tree, torch.cat(credit), torch.cat(sampled), name=name)
