"""token_logprob, forward and backward, beside its definition and torch.compile of it; and all the way from logits to
the policy loss. Liger-Kernel, whose Triton kernels need a GPU, joins on CUDA only.

What each contender needs beside the logits, at its peak, stands in the results as peak_bytes (Linux or CUDA).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from bench.harness import OURS, Case, benchmark_cases
from bench.memory import can_measure, peak_bytes
from diva_engine.ops import policy_loss, token_logprob
from diva_engine.ops.token_logprob import token_logprob_reference

VOCABULARY = 151_936  # Qwen2.5-VL
Results = tuple[Tensor, Tensor]


def forward_backward(logits: Tensor, compute: Callable[[Tensor], Results]) -> Callable[[], None]:
    leaf = logits.detach().requires_grad_()
    weights = torch.ones(len(logits), device=logits.device)

    def run() -> None:
        leaf.grad = None
        torch.autograd.backward(compute(leaf), (weights, weights))

    return run


def in_place(logits: Tensor, targets: Tensor) -> Callable[[], None]:
    """The gradient takes the place of the logits; later rounds work on what the first has left, as much work."""
    return forward_backward(logits.clone(), lambda x: token_logprob(x, targets, inplace_backward=True))


def cases(device: str) -> Iterator[Case]:
    compiled = torch.compile(token_logprob_reference, dynamic=False)
    shapes = ((64, VOCABULARY), (2048, 512)) if device == "cpu" else ((4096, VOCABULARY), (16384, VOCABULARY))
    for rows, columns in shapes:
        for dtype in (torch.float32, torch.bfloat16):
            logits = torch.randn(rows, columns, device=device).to(dtype)
            targets = torch.randint(columns, (rows,), device=device)
            contenders = {
                OURS: forward_backward(logits, lambda x, t=targets: token_logprob(x, t)),
                "diva_engine, in place": in_place(logits, targets),
                "torch, the definition": forward_backward(logits, lambda x, t=targets: token_logprob_reference(x, t)),
                "torch.compile of it": forward_backward(logits, lambda x, t=targets: compiled(x, t)),
            }
            measured = [name for name in contenders if can_measure(device) and "compile" not in name]
            peaks = {name: peak_bytes(contenders[name], device) for name in measured}
            size = f"{rows:,} x {columns:,} {str(dtype).removeprefix('torch.')}"
            yield Case("token_logprob", size, 3 * logits.nbytes, contenders, {"peak_bytes": peaks})


def loss_cases(device: str) -> Iterator[Case]:
    sequences, length, columns = (2, 32, VOCABULARY) if device == "cpu" else (8, 512, VOCABULARY)
    count = sequences * length
    logits = torch.randn(count, columns, device=device).bfloat16()
    targets = torch.randint(columns, (count,), device=device)
    offsets = torch.arange(0, count + 1, length, device=device)
    old, advantage = -torch.rand(count, device=device), torch.randn(sequences, device=device)
    per_token = advantage.repeat_interleave(length)

    def ours(x: Tensor) -> Tensor:
        return policy_loss(token_logprob(x, targets).logprob, old, per_token, offsets).loss

    def plain(x: Tensor) -> Tensor:
        ratio = (torch.log_softmax(x.float(), -1).gather(-1, targets[:, None])[:, 0] - old).exp()
        return -torch.minimum(ratio * per_token, ratio.clamp(0.8, 1.2) * per_token).mean()

    losses = {OURS: ours, "torch": plain, "torch.compile": torch.compile(plain, dynamic=False)}
    contenders = {name: _scalar(logits, loss) for name, loss in losses.items()}
    if device == "cuda" and importlib.util.find_spec("liger_kernel") is not None:
        contenders["Liger-Kernel, with one more row a sequence"] = _liger(logits, targets, old, advantage)
    yield Case("logits to policy loss", f"{count:,} x {columns:,} bfloat16", 3 * logits.nbytes, contenders)


def _scalar(logits: Tensor, loss: Callable[[Tensor], Tensor]) -> Callable[[], None]:
    leaf = logits.detach().requires_grad_()

    def run() -> None:
        leaf.grad = None
        loss(leaf).backward()

    return run


def _liger(logits: Tensor, targets: Tensor, old: Tensor, advantage: Tensor) -> Callable[[], None]:
    from liger_kernel.transformers.grpo_loss import triton_grpo_loss

    sequences = len(advantage)
    padded = torch.nn.functional.pad(logits.view(sequences, -1, logits.shape[-1]), (0, 0, 0, 1))
    arguments = (old.view(sequences, -1), None, targets.view(sequences, -1), advantage)
    settings = {"temperature": 1.0, "beta": 0.0, "eps_high": 0.2, "inplace": False, "reduce": True}
    return _scalar(padded, lambda x: triton_grpo_loss(x, *arguments, **settings)[0])


test_token_logprob = benchmark_cases(cases)
test_logits_to_loss = benchmark_cases(loss_cases)
