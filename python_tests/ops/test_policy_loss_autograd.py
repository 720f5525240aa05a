from __future__ import annotations

import pytest
import torch
import torch._dynamo.testing
from torch import Tensor
from torch.library import opcheck

from diva_engine.ops import policy_loss
from python_tests.ops.test_policy_loss import batch


def test_a_graph_walked_again_gives_the_same_gradient():
    tensors = batch([40, 3], seed=6, dtype=torch.float32)
    logprob = tensors["logprob"].requires_grad_()
    loss = policy_loss(logprob, tensors["old_logprob"], tensors["advantage"], tensors["offsets"]).loss
    (once,) = torch.autograd.grad(loss, logprob, retain_graph=True)
    loss.backward(retain_graph=True)
    loss.backward(retain_graph=True)
    assert torch.equal(logprob.grad, 2 * once)
    (half,) = torch.autograd.grad(loss / 2, logprob, retain_graph=True)
    assert torch.equal(2 * half, once)
    once += 1  # it is the tensor that the graph holds: autograd tells rather than gives a wrong gradient
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("sizes", [[3, 0, 1, 7], []])
@pytest.mark.parametrize("sequence", [False, True])
def test_is_a_well_behaved_torch_op(sizes, sequence):
    tensors = batch(sizes, dtype=torch.float32)
    positional = [tensors[name] for name in ("logprob", "old_logprob", "advantage", "offsets")]
    positional[0].requires_grad_()
    extra = [tensors["ref_logprob"], tensors["sampler_logprob"]] if sequence else [None, None]
    chosen = ("ppo", sequence, 0.2, 0.2, 3.0 if sequence else None, 1.0, 1.05, "k3", 0.1, 2.0, sequence, 5.0)
    opcheck(torch.ops.diva_engine.policy_loss.default, (*positional, *extra, *chosen))
    positional[0].requires_grad_(False)
    opcheck(torch.ops.diva_engine.policy_loss_forward.default, (*positional, *extra, *chosen))


def test_compiles_without_a_break():
    tensors = batch([3, 4, 0], dtype=torch.float32)

    def loss_of(logprob: Tensor) -> Tensor:
        result = policy_loss(logprob, tensors["old_logprob"], tensors["advantage"], tensors["offsets"])
        return result.loss * 2 + 0 * result.metrics.means()["ratio"]

    compiled = torch.compile(loss_of, fullgraph=True, backend="aot_eager")
    gradients = []
    for function in (loss_of, compiled):
        logprob = tensors["logprob"].clone().requires_grad_()
        function(logprob).backward()
        gradients.append(logprob.grad)
    torch.testing.assert_close(*gradients, rtol=1e-6, atol=0)  # compiled, the divisor stands outside the op


def test_compiles_once_for_all_sizes_and_divisors():
    compiles = torch._dynamo.testing.CompileCounter()
    compiled = torch.compile(
        lambda *x, d: policy_loss(*x, divisor=d).loss, fullgraph=True, dynamic=True, backend=compiles
    )
    for size in (8, 16, 24):
        tensors = batch([size, 3], dtype=torch.float32)
        arguments = [tensors[name] for name in ("logprob", "old_logprob", "advantage", "offsets")]
        plain = policy_loss(*arguments, divisor=size + 0.5).loss
        torch.testing.assert_close(compiled(*arguments, d=size + 0.5), plain, rtol=1e-6, atol=0)
    assert compiles.frame_count == 1
