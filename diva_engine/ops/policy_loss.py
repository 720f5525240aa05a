"""The policy loss of a packed batch: loss, gradient and metrics in one pass over the tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from diva_engine.ops import library

LossKind = Literal["ppo", "cispo", "sapo"]
RatioKind = Literal["token", "sequence"]
KlKind = Literal["k1", "k2", "k3"]
Aggregation = Literal["token_mean", "sequence_mean", "constant"]

LOG_RATIO_LIMIT = 20.0  # exp(20) is 5e8: a ratio beyond it says that something broke, and stays finite in float32
TOTALS = (
    "num_tokens",
    "ratio",
    "ratio_max",
    "clip_low",
    "clip_high",
    "clip_dual",
    "kl_old",
    "kl_ref",
    "sampler_weight",
    "sampler_truncated",
    "sampler_gap",
    "sampler_ratio",
    "sampler_ratio_squared",
)


class PolicyLossMetrics(NamedTuple):
    """What the pass saw, as totals over its tokens, so that micro-batches can be merged exactly."""

    totals: Tensor  # [13] float64, in the order of TOTALS: sums over tokens, and one maximum (ratio_max)

    @classmethod
    def merge(cls, parts: Sequence[PolicyLossMetrics]) -> PolicyLossMetrics:
        """The metrics of several micro-batches together."""
        stacked = torch.stack([part.totals for part in parts])
        totals = stacked.sum(0)
        totals[TOTALS.index("ratio_max")] = stacked[:, TOTALS.index("ratio_max")].max()
        return cls(totals)

    def means(self) -> dict[str, Tensor]:
        """Means over tokens, as scalars on the device.

        `ratio`, `ratio_max`: the importance ratio. `clip_low`, `clip_high`, `clip_dual`: share of tokens whose ratio
        was held by that bound. `kl_old`: half the mean squared token log-ratio, how far the policy has moved. `kl_ref`:
        the chosen estimator against the reference, 0 without one. `sampler_weight`: the truncated importance weight;
        `sampler_truncated`: share of tokens it was cut at; `sampler_gap`: mean |old_logprob - sampler_logprob|;
        `sampler_ess`: effective sample size of the weights before truncation, as a share of the tokens. Without
        sampler log-probabilities the last four are 1, 0, 0, 1.
        """
        means = dict(zip(TOTALS, self.totals / self.totals[0].clamp(min=1), strict=True))
        del means["num_tokens"]
        means["ratio_max"] = self.totals[TOTALS.index("ratio_max")]
        first, second = means.pop("sampler_ratio"), means.pop("sampler_ratio_squared")
        means["sampler_ess"] = torch.where(second > 0, first.square() / second, 1.0)
        return means


class PolicyLoss(NamedTuple):
    """A scalar to call `backward()` on, and the metrics."""

    loss: Tensor
    metrics: PolicyLossMetrics


def policy_loss(
    logprob: Tensor,  # [T] of the policy that is trained; the only input with a gradient
    old_logprob: Tensor,  # [T] of the same weights before the first update of the step
    advantage: Tensor,  # [T]
    offsets: Tensor,  # [S+1] int64: sequence s is tokens offsets[s] to offsets[s+1]; empty sequences are allowed
    *,
    loss: LossKind = "ppo",
    ratio: RatioKind = "token",
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    clip_dual: float | None = None,
    tau_positive: float = 1.0,
    tau_negative: float = 1.05,
    ref_logprob: Tensor | None = None,  # [T]
    kl: KlKind = "k3",
    kl_coef: float = 0.0,
    sampler_logprob: Tensor | None = None,  # [T] as the rollout engine reported them; NaN for a token nobody sampled
    truncation: float = 2.0,
    aggregation: Aggregation = "token_mean",
    divisor: float | None = None,
) -> PolicyLoss:
    """The loss of one micro-batch, with its gradient computed in the same pass.

    A token costs `weight * surrogate + kl_coef * kl`:

    - surrogate, with r = exp(logprob - old_logprob) (log-ratio held within +-20) and A the advantage:
      `ppo`   -min(r A, clip(r, 1 - clip_low, 1 + clip_high) A); with `clip_dual`, for A < 0, not above -clip_dual A;
      `cispo` -A logprob times the clipped ratio, taken as a constant;
      `sapo`  -A 4/tau sigmoid(tau (r - 1)), tau_positive for A >= 0, tau_negative for A < 0: no hard clip.
      With `ratio="sequence"` (GSPO) r is exp(mean log-ratio of the sequence); each token passes on its own share of
      the gradient (the paper's GSPO-token, which is GSPO where a sequence has one advantage).
    - weight: with `sampler_logprob`, min(exp(old_logprob - sampler_logprob), truncation), a constant; 1 without it, and
      where it is NaN (a forced prefix).
    - kl: an estimator of KL(policy, reference) with d = ref_logprob - logprob: k1 -d, k2 d^2/2, k3 exp(d) - d - 1.

    The batch's loss is a sum over `divisor`: of all tokens (`token_mean`, divisor T unless given; `constant`, divisor
    must be given, as Dr. GRPO's fixed length times the number of sequences), or of the sequences' means over their own
    tokens (`sequence_mean`, divisor S unless given, empty sequences counted). Give the whole batch's divisor and the
    losses of its micro-batches add up to the loss of the whole.

    float32, or float64 on the CPU. A token of advantage 0 has no surrogate gradient. NaN in another input makes the
    loss and that token's gradient NaN. Raises ValueError for a setting and RuntimeError for tensors that do not fit.
    """
    _check_settings(loss, ratio, kl, aggregation, divisor)
    library.refuse_gradient("policy_loss", old_logprob=old_logprob, advantage=advantage)
    if divisor is None:
        divisor = max(logprob.numel() if aggregation == "token_mean" else offsets.numel() - 1, 1)
    # torch.compile would compile the op anew for every divisor it is given.
    compiling = torch.compiler.is_compiling()
    value, _, totals = _PolicyLoss.apply(
        logprob, old_logprob, advantage, offsets, ref_logprob, sampler_logprob,
        loss, ratio == "sequence", clip_low, clip_high, clip_dual, tau_positive, tau_negative, kl, kl_coef,
        truncation, aggregation == "sequence_mean", 1.0 if compiling else divisor,
    )  # fmt: skip
    return PolicyLoss(value / divisor if compiling else value, PolicyLossMetrics(totals))


CHOICES = {
    "loss": get_args(LossKind),
    "ratio": get_args(RatioKind),
    "kl": get_args(KlKind),
    "aggregation": get_args(Aggregation),
}


def _check_settings(loss: str, ratio: str, kl: str, aggregation: str, divisor: float | None) -> None:
    for name, value in (("loss", loss), ("ratio", ratio), ("kl", kl), ("aggregation", aggregation)):
        if value not in CHOICES[name]:
            raise ValueError(f"policy_loss: {name}={value!r} is not one of {', '.join(CHOICES[name])}")
    if aggregation == "constant" and divisor is None:
        raise ValueError("policy_loss: aggregation='constant' needs a divisor")


def policy_loss_reference(
    logprob: Tensor,
    old_logprob: Tensor,
    advantage: Tensor,
    offsets: Tensor,
    *,
    loss: LossKind = "ppo",
    ratio: RatioKind = "token",
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    clip_dual: float | None = None,
    tau_positive: float = 1.0,
    tau_negative: float = 1.05,
    ref_logprob: Tensor | None = None,
    kl: KlKind = "k3",
    kl_coef: float = 0.0,
    sampler_logprob: Tensor | None = None,
    truncation: float = 2.0,
    aggregation: Aggregation = "token_mean",
    divisor: float | None = None,
) -> PolicyLoss:
    """The definition, in plain torch."""
    lengths = offsets.diff()
    sequence = torch.repeat_interleave(torch.arange(len(lengths), device=offsets.device), lengths)  # [T]
    token_log_ratio = logprob - old_logprob
    log_ratio = token_log_ratio
    if ratio == "sequence":
        sums = torch.zeros_like(lengths, dtype=logprob.dtype).index_add(0, sequence, token_log_ratio.detach())
        log_ratio = (sums / lengths)[sequence] + logprob - logprob.detach()
    r = _limited(log_ratio).exp()
    dual = math.inf if clip_dual is None else clip_dual
    surrogate, clips = {
        "ppo": lambda: _ppo(r, advantage, 1 - clip_low, 1 + clip_high, dual),
        "cispo": lambda: _cispo(r, advantage, 1 - clip_low, 1 + clip_high, logprob),
        "sapo": lambda: _sapo(r, advantage, tau_positive, tau_negative),
    }[loss]()

    gap = torch.zeros_like(logprob)
    if sampler_logprob is not None:
        gap = torch.where(sampler_logprob.isnan(), gap, old_logprob - sampler_logprob)
    importance = _limited(gap).exp()
    weight = importance if sampler_logprob is None else importance.clamp(max=truncation)
    d = torch.zeros_like(logprob) if ref_logprob is None else _limited(ref_logprob - logprob)
    divergence = {"k1": -d, "k2": d * d / 2, "k3": d.exp() - d - 1}[kl]

    token_loss = kl_coef * divergence - weight * surrogate
    if aggregation == "sequence_mean":
        token_loss = token_loss / lengths[sequence]
    if divisor is None:
        divisor = max(len(logprob) if aggregation == "token_mean" else len(lengths), 1)

    move = _limited(token_log_ratio).square() / 2
    metrics = [torch.ones_like(r), r, r, *clips, move, divergence]
    metrics += [weight, weight < importance, gap.abs(), importance, importance.square()]
    totals = torch.stack([per_token.detach().double().sum() for per_token in metrics])
    totals[TOTALS.index("ratio_max")] = r.detach().max() if len(r) else 0.0
    return PolicyLoss(token_loss.sum() / divisor, PolicyLossMetrics(totals))


def _limited(log_ratio: Tensor) -> Tensor:
    return log_ratio.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)


def _ppo(r: Tensor, advantage: Tensor, low: float, high: float, dual: float) -> tuple[Tensor, list[Tensor]]:
    surrogate = torch.minimum(r * advantage, r.clamp(low, high) * advantage)
    above_dual = (advantage < 0) & (r > dual)
    surrogate = torch.where(above_dual, dual * advantage, surrogate)
    return surrogate, [(advantage < 0) & (r < low), (advantage > 0) & (r > high), above_dual]


def _cispo(r: Tensor, advantage: Tensor, low: float, high: float, logprob: Tensor) -> tuple[Tensor, list[Tensor]]:
    alive = advantage != 0
    surrogate = r.clamp(low, high).detach() * advantage * logprob
    return surrogate, [alive & (r < low), alive & (r > high), torch.zeros_like(alive)]


def _sapo(r: Tensor, advantage: Tensor, tau_positive: float, tau_negative: float) -> tuple[Tensor, list[Tensor]]:
    tau = torch.full_like(r, tau_negative).masked_fill(advantage >= 0, tau_positive)
    surrogate = advantage * 4 / tau * torch.sigmoid(tau * (r - 1))
    return surrogate, [torch.zeros_like(r)] * 3


@torch.library.register_fake("diva_engine::policy_loss")
@torch.library.register_fake("diva_engine::policy_loss_forward")
def _fake(logprob: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return logprob.new_empty(()), torch.empty_like(logprob), logprob.new_empty(len(TOTALS), dtype=torch.float64)


def _save_gradient(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    _, gradient, totals = output
    ctx.mark_non_differentiable(gradient, totals)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(gradient)
    ctx.num_inputs = len(inputs)


def _scale_gradient(ctx: Any, loss_gradient: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    (gradient,) = ctx.saved_tensors
    others: tuple[None, ...] = (None,) * (ctx.num_inputs - 1)
    return None if loss_gradient is None else gradient * loss_gradient, *others


def _is_one(tensor: Tensor) -> bool:
    """Whether a scalar is 1, as far as that can be known without waiting for a device, and nothing is made of it."""
    if torch.compiler.is_compiling() or type(tensor) is not Tensor:
        return False
    return tensor.is_cpu and not tensor.requires_grad and tensor.item() == 1.0


class _PolicyLoss(torch.autograd.Function):
    """The op with its gradient. What is registered below does the same, but costs 60 us more a call."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
        output: tuple[Tensor, Tensor, Tensor] = torch.ops.diva_engine.policy_loss_forward.default(*inputs)
        _save_gradient(ctx, inputs, output)
        return output

    @staticmethod
    def backward(ctx: Any, loss_gradient: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        if loss_gradient is None or not _is_one(loss_gradient):
            return _scale_gradient(ctx, loss_gradient)
        # Usual for a loss: no second gradient is made. Whoever changes this one in place and walks the graph again is
        # told so by autograd.
        return ctx.saved_tensors[0], *(None,) * (ctx.num_inputs - 1)


torch.library.register_autograd("diva_engine::policy_loss", _scale_gradient, setup_context=_save_gradient)
