"""DIVA's advantage: the local and the global term, brought to the batch's scale, weighted, faded and added."""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from diva_engine.ops import library
from diva_engine.ops.group_stats import group_stats_reference

Weight = Literal["global", "both", "none"]
Rrb = Literal["range", "threshold", "none"]
Std = Literal["sample", "population"]
Balance = Literal["sequences", "padded_tokens", "minmax", "none"]
# In the order in which csrc/diva_advantage/diva_advantage.h numbers them.
WEIGHTS, RRBS, STDS, BALANCES = get_args(Weight), get_args(Rrb), get_args(Std), get_args(Balance)


class DivaAdvantage(NamedTuple):
    """One number a rollout, [N] each; `advantage` is `w_local * local + w_global * global_`."""

    advantage: Tensor
    local: Tensor
    global_: Tensor


def diva_advantage(
    rewards: Tensor,  # [N] float32; float64 on the CPU too
    prompt_offsets: Tensor,  # [P+1] int64 over rollouts
    question_offsets: Tensor,  # [Q+1] int64 over prompts
    difficulty: Tensor,  # [P], same type as the rewards
    *,
    k: float = 0.1,
    weight: Weight = "global",
    rrb: Rrb = "range",
    r_max: float = 1.0,
    std: Std = "sample",
    eps: float = 1e-6,
    balance: Balance = "sequences",
    lengths: Tensor | None = None,  # [N] int64 tokens of each rollout, for balance="padded_tokens"
    max_length: int | None = None,  # width of the padded matrix, likewise
    w_local: float = 1.0,
    w_global: float = 1.0,
) -> DivaAdvantage:
    """The advantage of each rollout within its prompt (local) and within its question (global), step by step:

    1. (reward - mean) / (std + eps) inside the group; a group of one, or of equal rewards, gives exactly 0.
    2. `balance` brings each of the two terms to the batch's scale: "sequences" divides by its std over all rollouts;
       "padded_tokens" takes the z-score over the padded matrix [N, max_length], as the authors' code does, so that
       response lengths leak into it; "minmax" divides by the largest absolute value; "none" leaves it.
    3. `weight` names the terms that are multiplied by exp(k * sign * (difficulty - mean difficulty of the question's
       prompts)): where a rollout did well, a harder prompt counts more.
    4. `rrb` fades groups whose rewards hardly differ: "range" by (max - min) / r_max, "threshold" (the authors' code)
       by 0.1 where all rewards are below 0.15.
    5. The two terms are added with the weights `w_local` and `w_global`.

    One launch on CUDA, nothing waits for the host. A NaN reward makes the whole batch NaN, except with balance="none",
    where it stays in its question. Offsets are refused as in `group_stats`. No gradient.
    """
    library.refuse_gradient("diva_advantage", rewards=rewards, difficulty=difficulty)
    if balance == "padded_tokens" and (lengths is None or max_length is None or max_length < 1):
        raise ValueError("diva_advantage: balance='padded_tokens' needs lengths and a max_length of at least 1")
    if not r_max > 0:
        raise ValueError(f"diva_advantage: r_max must be above 0, not {r_max}")
    return DivaAdvantage(
        *torch.ops.diva_engine.diva_advantage.default(
            rewards,
            prompt_offsets,
            question_offsets,
            difficulty,
            k,
            _code("weight", weight, WEIGHTS),
            _code("rrb", rrb, RRBS),
            r_max,
            _code("std", std, STDS) == 0,
            eps,
            _code("balance", balance, BALANCES),
            lengths if balance == "padded_tokens" else None,
            max_length or 0,
            w_local,
            w_global,
        )
    )


def _code(setting: str, value: str, names: tuple[str, ...]) -> int:
    if value not in names:
        raise ValueError(f"diva_advantage: {setting} must be one of {', '.join(names)}, not {value!r}")
    return names.index(value)


def diva_advantage_reference(
    rewards: Tensor,
    prompt_offsets: Tensor,
    question_offsets: Tensor,
    difficulty: Tensor,
    *,
    k: float = 0.1,
    weight: Weight = "global",
    rrb: Rrb = "range",
    r_max: float = 1.0,
    std: Std = "sample",
    eps: float = 1e-6,
    balance: Balance = "sequences",
    lengths: Tensor | None = None,
    max_length: int | None = None,
    w_local: float = 1.0,
    w_global: float = 1.0,
) -> DivaAdvantage:
    """The definition, in plain torch."""
    question_of_prompt = torch.repeat_interleave(question_offsets.diff())
    mean_difficulty = group_stats_reference(difficulty, question_offsets).mean
    harder = torch.repeat_interleave(difficulty - mean_difficulty[question_of_prompt], prompt_offsets.diff())  # [N]
    ddof = 1 if std == "sample" else 0

    terms = []
    for offsets, is_weighted in (
        (prompt_offsets, weight == "both"),
        (prompt_offsets[question_offsets], weight != "none"),
    ):
        term, low, high = _group_zscore(rewards, offsets, ddof, eps)
        term = _balanced(term, balance, ddof, eps, lengths, max_length)
        if is_weighted:
            term = term * torch.exp(k * harder * term.sign())
        if rrb == "range":
            term = term * (high - low) / r_max
        if rrb == "threshold":
            term = torch.where(high < 0.15, 0.1 * term, term)
        terms.append(term)

    local, global_ = terms
    return DivaAdvantage(w_local * local + w_global * global_, local, global_)


def _group_zscore(rewards: Tensor, offsets: Tensor, ddof: int, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """(reward - mean) / (std + eps) within each group, and the group's lowest and highest reward, [N] each."""
    sizes = offsets.diff()
    stats = group_stats_reference(rewards, offsets)
    freedom = (sizes - ddof).clamp(min=1).to(rewards.dtype)
    std = stats.std * ((sizes - 1).clamp(min=0) / freedom).sqrt()
    zscore = (rewards - stats.mean.repeat_interleave(sizes)) / (std.repeat_interleave(sizes) + eps)
    return zscore, stats.min.repeat_interleave(sizes), stats.max.repeat_interleave(sizes)


def _balanced(
    term: Tensor, balance: Balance, ddof: int, eps: float, lengths: Tensor | None, max_length: int | None
) -> Tensor:
    """The term [N] on the scale of the batch."""
    if balance == "none" or len(term) == 0:
        return term
    if balance == "minmax":
        largest = term.abs().max()
        return torch.where(largest > 0, term / largest, 0.0)
    if balance == "sequences":  # its mean is 0: every group's is
        return term / ((term.square().sum() / max(len(term) - ddof, 1)).sqrt() + eps)
    assert lengths is not None
    assert max_length is not None
    mask = torch.arange(max_length, device=term.device) < lengths[:, None]
    padded = term[:, None] * mask  # [N, max_length]
    return (term - padded.mean()) / (padded.std(correction=min(ddof, padded.numel() - 1)) + eps)


@torch.library.register_fake("diva_engine::diva_advantage")
def _fake(rewards: Tensor, *_: object) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(rewards), torch.empty_like(rewards), torch.empty_like(rewards)
