"""policy_loss, token_logprob and spectral_entropy on a GPU give what they give on the CPU."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

from diva_engine.ops import policy_loss, spectral_entropy, token_logprob
from python_tests.ops import test_policy_loss, test_spectral_entropy, test_token_logprob

pytestmark = pytest.mark.gpu


def on_cuda(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.cuda() for name, tensor in tensors.items()}


@pytest.mark.parametrize("chosen", test_policy_loss.SETTINGS)
@pytest.mark.parametrize("sizes", test_policy_loss.SIZES)
def test_policy_loss_equals_the_cpu(chosen, sizes):
    tensors = test_policy_loss.batch(test_policy_loss.SIZES[sizes], seed=1, dtype=torch.float32)
    settings = test_policy_loss.SETTINGS[chosen]
    got = test_policy_loss.call(policy_loss, on_cuda(tensors), settings)
    want = test_policy_loss.call(policy_loss, tensors, settings)
    test_policy_loss.assert_equal_results([result.cpu() for result in got], want, 2e-5)


@pytest.mark.parametrize("shape", test_token_logprob.SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("first", [0, 1, 3])
def test_token_logprob_equals_the_cpu(shape, dtype, first):
    logits, targets = test_token_logprob.draw(test_token_logprob.SHAPES[shape], dtype)
    wide = torch.nn.functional.pad(logits, (first, 0)).cuda()
    leaf = logits.clone().requires_grad_()
    leaf_on_cuda = wide[:, first:].detach().requires_grad_()  # rows that begin anywhere
    results = []
    for x, t in ((leaf, targets), (leaf_on_cuda, targets.cuda())):
        logprob, entropy = token_logprob(x, t, 0.7)
        (logprob + 0.3 * entropy).sum().backward()
        results.append([tensor.detach().cpu() for tensor in (logprob, entropy, x.grad)])
    test_token_logprob.assert_equal_results(results[1], results[0], (4e-6, test_token_logprob.TOLERANCE[dtype][1]))


@pytest.mark.parametrize("shape", test_spectral_entropy.SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_spectral_entropy_equals_the_cpu(shape, dtype):
    features, offsets = test_spectral_entropy.draw(*test_spectral_entropy.SHAPES[shape], dtype)
    got = spectral_entropy(features.cuda(), offsets.cuda()).cpu()
    torch.testing.assert_close(got, spectral_entropy(features, offsets), rtol=0, atol=1e-4)


def test_a_target_out_of_range_is_nan():
    logprob, entropy = token_logprob(torch.zeros(2, 5, device="cuda"), torch.tensor([5, 1], device="cuda"))
    assert logprob.isnan().tolist() == [True, False]
    assert entropy.isnan().tolist() == [True, False]


def work() -> Callable[[], list[Tensor]]:
    """All three ops, on the stream that is current when they are run."""
    logits, targets = (tensor.cuda() for tensor in test_token_logprob.draw((64, 3000), torch.bfloat16))
    tensors = on_cuda(test_policy_loss.batch([20, 0, 44], dtype=torch.float32))
    features, offsets = (tensor.cuda() for tensor in test_spectral_entropy.draw([40, 100], 64, torch.float32))
    torch.cuda.synchronize()

    def run() -> list[Tensor]:
        logprob, entropy = token_logprob(logits, targets)
        arguments = (tensors["old_logprob"], tensors["advantage"], tensors["offsets"])
        loss = policy_loss(logprob, *arguments, ratio="sequence").loss
        return [logprob, entropy, loss, spectral_entropy(features, offsets, max_patches=100)]

    return run


@torch.no_grad()
def test_side_streams_and_graphs_give_the_same():
    run = work()
    want = run()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        on_side = run()
    side.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run()
    graph.replay()
    torch.cuda.synchronize()
    for a, b, c in zip(want, on_side, captured, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)
    assert all(math.isfinite(tensor.sum()) for tensor in want)


def test_are_well_behaved_torch_ops():
    ops = torch.ops.diva_engine
    logits, targets = (tensor.cuda() for tensor in test_token_logprob.draw((4, 19), torch.bfloat16))
    opcheck(ops.token_logprob.default, (logits.requires_grad_(), targets, 0.9))
    features, offsets = (tensor.cuda() for tensor in test_spectral_entropy.draw([3, 0, 5], 6, torch.float32))
    opcheck(ops.spectral_entropy.default, (features, offsets, None))
    tensors = on_cuda(test_policy_loss.batch([3, 0, 7], dtype=torch.float32))
    positional = [tensors[name] for name in ("logprob", "old_logprob", "advantage", "offsets")]
    chosen = (None, None, "ppo", False, 0.2, 0.2, None, 1.0, 1.05, "k3", 0.1, 2.0, False, 10.0)
    opcheck(ops.policy_loss.default, (*positional, *chosen))
