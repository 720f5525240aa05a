"""The recipes' advantages for other trainers: flat rewards and ids in, one advantage a rollout out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from diva_engine import ops
from diva_engine.algorithm.advantages import diva_terms, group_centred, group_zscore, leave_one_out, rescale_by_range
from diva_engine.algorithm.difficulty_groups import durian_sum
from diva_engine.algorithm.recipes import recipe_defaults
from diva_engine.algorithm.rollout_order import Ids, RolloutOrder, as_numbers, order_rollouts
from diva_engine.config import AdvantageConfig, Config
from diva_engine.records import UserError
from diva_engine.settings import build_config

T = TypeVar("T")


def compute_advantage(
    algorithm: str,
    rewards: Any,  # [N]
    prompt_ids: Ids,  # [N]
    question_ids: Ids | None = None,  # [N]
    difficulty: Any = None,  # [N]
    preset: str = "paper",
    *,
    lengths: Any = None,  # [N]
    max_length: int | None = None,
    visual_entropy: Any = None,  # [N]
    logprobs: Any = None,  # [N]
    **settings: Any,
) -> Tensor:  # [N] float32
    """The advantage of each rollout, as the recipe `algorithm` credits it, in the order of `rewards`.

    Every argument [N] holds one value a rollout, in any order, as a list, an array or a tensor. An id is anything
    hashable; the rows of a two-dimensional tensor or array are ids too. The result is on the device of `rewards`. What
    an algorithm does not read is not looked at, so that one call serves them all.

    Args:
        algorithm: grpo, dr_grpo, rloo, gspo, cispo, sapo, diva or durian.
        rewards: finite numbers. Means, deviations and batch statistics are taken over these rollouts and no others, so
            give the whole step at once, gathered from all ranks.
        prompt_ids: rollouts of equal id answer the same prompt, word for word.
        question_ids: diva only: prompts of equal id are variants of one question.
        difficulty: diva only: the level D_i of the rollout's variant, equal within a prompt.
        preset: `paper`; or, for diva, `authors`: what the authors' code does otherwise.
        lengths: tokens of each rollout, where balance=padded_tokens (preset=authors).
        max_length: width of the padded token matrix, likewise.
        visual_entropy: durian only: perceptual score in nats, NaN without a picture, equal within a prompt.
        logprobs: durian only: summed log-probability of each rollout's tokens, as they were sampled.
        settings: what `advantage.*` is in training, without the prefix (std, eps, rrb, ...); for durian also
            w_original, w_perceptual, w_reasoning, num_reasoning_groups.

    Raises:
        diva_engine.records.UserError: something missing, misspelt or contradictory; the message says what.
        ImportError: the compiled ops are not built.
    """
    rule = _find_rule(algorithm)
    config = build_config({**recipe_defaults(algorithm, preset), **_dotted(algorithm, rule, settings)})
    rewards = _checked_rewards(rewards)
    if question_ids is None and rule.compares_questions:
        raise UserError(
            f"{algorithm} compares a rollout with all answers to its question: give question_ids, one a rollout "
            "(question_ids=prompt_ids where every question has one prompt)"
        )
    order = order_rollouts(prompt_ids, question_ids, len(rewards), rewards.device)
    step = _Step(algorithm, rewards[order.order], order, difficulty, lengths, max_length, visual_entropy, logprobs)
    return order.restore(rule.advantage(step, config))


@dataclass(frozen=True)
class _Step:
    """The rewards in the order of the ops, and the rest as the caller gave it: a rule takes what it needs."""

    algorithm: str
    rewards: Tensor  # [N]
    order: RolloutOrder
    difficulty: Any
    lengths: Any
    max_length: int | None
    visual_entropy: Any
    logprobs: Any

    def demand(self, value: T | None, wanted: str, otherwise: str) -> T:
        if value is None:
            raise UserError(f"{self.algorithm} needs {wanted}; or set {otherwise}")
        return value


def _grpo(step: _Step, config: Config) -> Tensor:
    offsets, settings = step.order.prompt_offsets, config.advantage
    advantage = group_zscore(step.rewards, offsets, std=settings.std, eps=settings.eps)
    return rescale_by_range(advantage, step.rewards, offsets, settings)


def _dr_grpo(step: _Step, config: Config) -> Tensor:
    offsets = step.order.prompt_offsets
    return rescale_by_range(group_centred(step.rewards, offsets), step.rewards, offsets, config.advantage)


def _rloo(step: _Step, config: Config) -> Tensor:
    offsets = step.order.prompt_offsets
    return rescale_by_range(leave_one_out(step.rewards, offsets), step.rewards, offsets, config.advantage)


def _diva(step: _Step, config: Config) -> Tensor:
    settings, order = config.advantage, step.order
    level = torch.zeros(len(order.prompts), device=step.rewards.device)
    if settings.weight != "none":
        given = step.demand(step.difficulty, "difficulty, the level of each rollout's variant", "weight='none'")
        level = order.gather_prompts("difficulty", given)
        if not level.isfinite().all():
            raise UserError("difficulty holds a number that is not finite; levels are in [1, 9]")
    lengths = None
    if settings.balance == "padded_tokens":
        given = step.demand(step.lengths, "lengths, the tokens of each rollout", "balance='sequences'")
        lengths = order.gather("lengths", given, torch.int64)
        longest = step.demand(step.max_length, "max_length, the longest answer allowed", "balance='sequences'")
        if len(lengths) and int(lengths.max()) > longest:
            raise UserError(f"a rollout has {int(lengths.max())} tokens, more than max_length={longest}")
    return ops.diva_advantage(
        step.rewards,
        order.prompt_offsets,
        order.question_offsets,
        level,
        lengths=lengths,
        max_length=step.max_length,
        **diva_terms(settings),
    ).advantage


def _durian(step: _Step, config: Config) -> Tensor:
    settings, order = config.durian, step.order
    entropy = mean_logprobs = None
    if settings.w_perceptual:
        wanted = "visual_entropy, in nats, NaN without a picture"
        entropy = order.gather_prompts("visual_entropy", step.demand(step.visual_entropy, wanted, "w_perceptual=0"))
    if settings.w_reasoning:
        wanted = "logprobs, the summed log-probability of each rollout's tokens"
        given = step.demand(step.logprobs, wanted, "w_reasoning=0")
        mean_logprobs = _prompt_means(order.gather("logprobs", given, torch.float64), order.prompt_offsets)
    advantage = durian_sum(step.rewards, order.prompt_offsets, entropy, mean_logprobs, config)
    return rescale_by_range(advantage, step.rewards, order.prompt_offsets, config.advantage)


def _prompt_means(values: Tensor, offsets: Tensor) -> Tensor:
    sizes = offsets.diff()
    prompt = torch.repeat_interleave(sizes)  # [N]
    return values.new_zeros(len(sizes)).index_add(0, prompt, values) / sizes


@dataclass(frozen=True)
class _Rule:
    """A recipe's advantage over flat tensors, and the settings that it reads."""

    advantage: Callable[[_Step, Config], Tensor]
    settings: Mapping[str, str]  # by the name that the caller uses, the dotted one
    compares_questions: bool = False


def _in_section(section: str, *names: str) -> dict[str, str]:
    return {name: f"{section}.{name}" for name in names}


_RANGE = _in_section("advantage", "rrb", "r_max")
_ZSCORE = _RANGE | _in_section("advantage", "std", "eps")
_SHARED_STD = _in_section("durian", "w_original", "w_perceptual", "w_reasoning", "num_reasoning_groups")
_DIVA = _in_section("advantage", *(item.name for item in dataclasses.fields(AdvantageConfig)))

RULES: Mapping[str, _Rule] = {
    "grpo": _Rule(_grpo, _ZSCORE),
    "gspo": _Rule(_grpo, _ZSCORE),
    "cispo": _Rule(_grpo, _ZSCORE),
    "sapo": _Rule(_grpo, _ZSCORE),
    "dr_grpo": _Rule(_dr_grpo, _RANGE),
    "rloo": _Rule(_rloo, _RANGE),
    "diva": _Rule(_diva, _DIVA, compares_questions=True),
    "durian": _Rule(_durian, _ZSCORE | _SHARED_STD),
}


def _find_rule(algorithm: str) -> _Rule:
    if algorithm not in RULES:
        raise UserError(f"compute_advantage has no algorithm {algorithm!r}; take one of {', '.join(RULES)}")
    return RULES[algorithm]


def _dotted(algorithm: str, rule: _Rule, settings: Mapping[str, Any]) -> dict[str, Any]:
    for name in settings:
        if name not in rule.settings:
            raise UserError(f"{name} is not a setting of {algorithm}'s advantage; it has {', '.join(rule.settings)}")
    return {rule.settings[name]: value for name, value in settings.items()}


def _checked_rewards(rewards: Any) -> Tensor:
    tensor = as_numbers("rewards", rewards).to(torch.float32)
    if tensor.requires_grad:
        raise UserError("rewards requires grad, but no gradient flows through an advantage; pass rewards.detach()")
    if tensor.ndim != 1:
        raise UserError(f"rewards has the shape {list(tensor.shape)}: give one number a rollout, [N]")
    if not tensor.isfinite().all():
        place = int((~tensor.isfinite()).nonzero()[0])
        raise UserError(f"rewards[{place}] is {float(tensor[place])}; leave out rollouts that have no reward")
    return tensor
