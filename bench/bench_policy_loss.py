"""policy_loss, forward and backward, beside its definition, the loss alone in plain torch, and torch.compile of that.

The loss alone computes no metrics, so it does less than the op. Liger-Kernel fuses this loss with the logits: see
bench_token_logprob.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from bench.harness import OURS, Case, benchmark_cases
from diva_engine.ops import policy_loss
from diva_engine.ops.policy_loss import policy_loss_reference

EVERYTHING = {"ratio": "sequence", "aggregation": "sequence_mean", "clip_dual": 3.0, "kl_coef": 0.01}


def loss_alone(logprob: Tensor, old_logprob: Tensor, advantage: Tensor) -> Tensor:
    ratio = (logprob - old_logprob).exp()
    return -torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage).mean()


def forward_backward(logprob: Tensor, loss: Callable[[Tensor], Tensor]) -> Callable[[], None]:
    leaf = logprob.detach().requires_grad_()

    def run() -> None:
        leaf.grad = None
        loss(leaf).backward()

    return run


def cases(device: str) -> Iterator[Case]:
    compiled = torch.compile(loss_alone, dynamic=False)
    for count in (4096, 16384, 65536):
        offsets = torch.arange(0, count + 1, 512, device=device)
        logprob, old, ref, sampler = -torch.rand(count, device=device) + 0.1 * torch.randn(4, count, device=device)
        data = (old, torch.randn(count, device=device), offsets)
        yield Case(
            "policy_loss",
            f"{count:,} tokens",
            5 * logprob.nbytes,
            {
                OURS: forward_backward(logprob, lambda x, d=data: policy_loss(x, *d).loss),
                "torch, the definition": forward_backward(logprob, lambda x, d=data: policy_loss_reference(x, *d).loss),
                "torch, the loss alone": forward_backward(logprob, lambda x, d=data: loss_alone(x, *d[:2])),
                "torch.compile of that": forward_backward(logprob, lambda x, d=data: compiled(x, *d[:2])),
            },
        )
        more = {**EVERYTHING, "ref_logprob": ref, "sampler_logprob": sampler}
        yield Case(
            "policy_loss, GSPO with KL and sampler weights",
            f"{count:,} tokens",
            7 * logprob.nbytes,
            {
                OURS: forward_backward(logprob, lambda x, d=data, m=more: policy_loss(x, *d, **m).loss),
                "torch, the definition": forward_backward(
                    logprob, lambda x, d=data, m=more: policy_loss_reference(x, *d, **m).loss
                ),
            },
        )


test_policy_loss = benchmark_cases(cases)
