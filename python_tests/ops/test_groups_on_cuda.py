"""The ops on groups of rewards on a GPU: equal to the CPU, on any stream, inside a graph, without torch."""

from __future__ import annotations

import pytest
import torch
from torch.library import opcheck

import diva_engine
from diva_engine import arrays, ops
from diva_engine.ops.diva_advantage import BALANCES
from python_tests.ops import ragged, test_diva_advantage

pytestmark = pytest.mark.gpu

SIZES = [5, 1, 0, 7, 33, 2, 4, 4, 64, 3] * 50
BINS = torch.arange(len(SIZES)) % 7
REWARDS, PROMPTS, QUESTIONS, LEVELS = test_diva_advantage.batch(
    SIZES, test_diva_advantage.questions_over(len(SIZES)), dtype=torch.float32
)
CALLS = {
    "group_stats": (REWARDS, PROMPTS),
    "diva_advantage": (REWARDS, PROMPTS, QUESTIONS, LEVELS),
    "shared_std_advantage": (REWARDS, PROMPTS, BINS, 7),
    "update_difficulty": (LEVELS, torch.arange(0, 500, 3), torch.linspace(0, 1, 167)),
}
SAME_BITS = {"group_stats", "update_difficulty"}


def on_cuda(arguments):
    return [a.cuda() if isinstance(a, torch.Tensor) else a for a in arguments]


def fresh(arguments):
    return [a.clone() if isinstance(a, torch.Tensor) else a for a in arguments]


def as_tuple(result):
    return tuple(result) if isinstance(result, tuple) else (result,)


def assert_like_the_cpu(name, got):
    want = as_tuple(getattr(ops, name)(*fresh(CALLS[name])))
    tolerance = 0.0 if name in SAME_BITS else 2e-6
    for ours, theirs in zip(as_tuple(got), want, strict=True):
        torch.testing.assert_close(ours.cpu(), theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", CALLS)
def test_equals_the_cpu(name):
    assert_like_the_cpu(name, getattr(ops, name)(*on_cuda(CALLS[name])))


@pytest.mark.parametrize("balance", BALANCES)
def test_every_balance_equals_the_cpu(balance):
    lengths = torch.randint(0, 50, (len(REWARDS),), generator=torch.Generator().manual_seed(0))
    settings = {"balance": balance, "weight": "both", "max_length": 50}
    got = ops.diva_advantage(*on_cuda(CALLS["diva_advantage"]), lengths=lengths.cuda(), **settings)
    want = ops.diva_advantage(*CALLS["diva_advantage"], lengths=lengths, **settings)
    for ours, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(ours.cpu(), theirs, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("name", ragged.SIZES)
def test_group_stats_has_the_bits_of_the_cpu(name):
    offsets = ragged.offsets_of(ragged.SIZES[name])
    values = torch.randn(int(offsets[-1]), generator=torch.Generator().manual_seed(3))
    for got, want in zip(ops.group_stats(values.cuda(), offsets.cuda()), ops.group_stats(values, offsets), strict=True):
        assert torch.equal(got.cpu().view(torch.int32), want.view(torch.int32))


@pytest.mark.parametrize("name", CALLS)
def test_runs_on_the_current_stream(name):
    arguments = on_cuda(CALLS[name])
    late = on_cuda([torch.zeros_like(a) if a is REWARDS else a for a in CALLS[name]])
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)  # on another stream the op would read before the rewards are there
        for there, here in zip(late, arguments, strict=True):
            if isinstance(there, torch.Tensor):
                there.copy_(here)
        got = getattr(ops, name)(*late)
    stream.synchronize()
    assert_like_the_cpu(name, got)


@pytest.mark.parametrize("name", CALLS)
def test_can_be_captured_in_a_graph(name):
    arguments = on_cuda(CALLS[name])
    getattr(ops, name)(*on_cuda(CALLS[name]))  # loads the kernel
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = getattr(ops, name)(*arguments)
    graph.replay()
    torch.cuda.synchronize()
    assert_like_the_cpu(name, got)


@pytest.mark.parametrize("name", ["diva_advantage", "shared_std_advantage", "group_stats"])
def test_does_not_wait_for_the_device(name):
    arguments = on_cuda(CALLS[name])
    torch.cuda.set_sync_debug_mode("error")
    try:
        getattr(ops, name)(*arguments)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_repeated_index_is_named():
    with pytest.raises(RuntimeError, match="index 7 stands more than once"):
        ops.update_difficulty(torch.ones(9).cuda(), torch.tensor([7, 7]).cuda(), torch.tensor([0.5, 0.5]).cuda())


def test_double_is_refused():
    with pytest.raises(RuntimeError, match="must be Float on CUDA"):
        ops.group_stats(torch.ones(3).double().cuda(), torch.tensor([0, 3]).cuda())


@pytest.mark.skipif(diva_engine.build_info()["cuda"] is None, reason="without nvcc arrays are served on the CPU only")
@pytest.mark.parametrize("name", CALLS)
def test_serves_arrays_that_speak_the_cuda_interface(name):
    arguments = on_cuda(CALLS[name])
    results = as_tuple(getattr(ops, name)(*on_cuda(CALLS[name])))
    out = [torch.zeros_like(result) for result in results]
    getattr(arrays, name)(*arguments, out=out if len(out) > 1 else out[0])
    torch.cuda.synchronize()
    for got, want in zip(out, results, strict=True):
        assert torch.equal(got, want)


def test_are_well_behaved_torch_ops():
    opcheck(torch.ops.diva_engine.group_stats.default, tuple(on_cuda(CALLS["group_stats"])))
    opcheck(torch.ops.diva_engine.shared_std_advantage.default, (*on_cuda(CALLS["shared_std_advantage"]), 1e-6))
