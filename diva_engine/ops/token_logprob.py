"""Log-probability of each token and entropy of its distribution, straight from the logits."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from diva_engine.ops import library as library  # loads the ops


class TokenLogprob(NamedTuple):
    """Of each token, [T] each: float32 (float64 for float64 logits), in nats."""

    logprob: Tensor
    entropy: Tensor


def token_logprob(
    logits: Tensor,  # [T, V] bfloat16, float16 or float32; float64 on the CPU too
    targets: Tensor,  # [T] int64
    temperature: float = 1.0,
    *,
    inplace_backward: bool = False,
) -> TokenLogprob:
    """Log-softmax of `logits / temperature` at the targets, and the entropy of the whole distribution; differentiable.

    Each pass reads the logits once, and nothing of size [T, V] is made beside the gradient, which has the logits' type.
    With `inplace_backward` not even that: the gradient overwrites the logits, which nobody may read after `backward()`
    (autograd refuses a second backward). Rows may be any distance apart, so a slice such as `logits[:, :-1].flatten(0,
    1)` needs no copy if its own rows are contiguous. A token to whose results no gradient flows costs no reading.

    A logit of -inf is a token that cannot be drawn: probability 0, gradient 0, and -inf where it is the target. NaN or
    +inf in a row, or nothing but -inf, makes both results of that row NaN, as log_softmax does.

    Raises RuntimeError for tensors that do not fit and for a temperature of 0 or less. A target out of range is refused
    on the CPU; CUDA, which would have to wait for the device to look, gives NaN.
    """
    logprob, entropy, _ = _TokenLogprob.apply(logits, targets, temperature, inplace_backward)
    return TokenLogprob(logprob, entropy)


def token_logprob_reference(logits: Tensor, targets: Tensor, temperature: float = 1.0) -> TokenLogprob:
    """The definition, in plain torch."""
    wide = logits if logits.dtype == torch.float64 else logits.float()
    log_p = torch.log_softmax(wide / temperature, dim=-1)
    entropy = -torch.where(log_p == -torch.inf, 0.0, log_p.exp() * log_p).sum(dim=-1)
    return TokenLogprob(log_p.gather(-1, targets[:, None]).squeeze(-1), entropy)


@torch.library.register_fake("diva_engine::token_logprob")
def _fake(logits: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    logprob, entropy, log_norm = (logits.new_empty(logits.shape[0], dtype=dtype) for _ in range(3))
    return logprob, entropy, log_norm


@torch.library.register_fake("diva_engine::token_logprob_backward")
def _fake_backward(logits: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(logits, memory_format=torch.contiguous_format)


@torch.library.register_fake("diva_engine::token_logprob_backward_")
def _fake_backward_in_place(logits: Tensor, *_: Any) -> None:
    return None


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    logits, targets, ctx.temperature = inputs
    ctx.mark_non_differentiable(output[2])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(logits, targets, *output)


def _backward(
    ctx: Any, logprob_gradient: Tensor | None, entropy_gradient: Tensor | None, _: Tensor | None
) -> tuple[Tensor | None, None, None]:
    ops = torch.ops.diva_engine
    return (
        ops.token_logprob_backward(*ctx.saved_tensors, logprob_gradient, entropy_gradient, ctx.temperature),
        None,
        None,
    )


class _TokenLogprob(torch.autograd.Function):
    """The op with its gradient. What is registered below does the same, but costs 60 us more a call."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, targets: Tensor, temperature: float, inplace_backward: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        output: tuple[Tensor, Tensor, Tensor] = torch.ops.diva_engine.token_logprob.default(
            logits, targets, temperature
        )
        _save(ctx, (logits, targets, temperature), output)
        ctx.inplace_backward = inplace_backward
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        if not ctx.inplace_backward:
            return *_backward(ctx, *gradients), None
        logits, *saved = ctx.saved_tensors
        gradient = logits.detach()
        torch.ops.diva_engine.token_logprob_backward_.default(gradient, *saved, *gradients[:2], ctx.temperature)
        torch.autograd.graph.increment_version(gradient)  # so that whoever still needs the logits is told
        return gradient, None, None, None


torch.library.register_autograd("diva_engine::token_logprob", _backward, setup_context=_save)
