from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.library import opcheck

from diva_engine.ops import token_logprob
from diva_engine.ops.token_logprob import token_logprob_reference

# dtype of the logits -> tolerance of the results, of the gradient (whose type is that of the logits)
TOLERANCE = {
    torch.float64: (1e-12, 1e-12),
    torch.float32: (2e-6, 2e-6),
    torch.bfloat16: (2e-6, 1e-2),
    torch.float16: (2e-6, 2e-3),
}
INF = math.inf

SHAPES = {
    "nothing": (0, 7),
    "one logit": (3, 1),
    "two logits": (1, 2),
    "below a vector": (5, 31),
    "above a vector": (5, 33),
    "below a block": (3, 1023),
    "a block": (3, 1024),
    "above a block": (3, 1025),
    "a vocabulary": (2, 151_936),
}


def draw(shape: tuple[int, int], dtype: torch.dtype, scale: float = 4.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(shape, generator=generator, dtype=torch.float64)
    targets = torch.randint(0, shape[1], (shape[0],), generator=generator)
    return logits.to(dtype), targets


def call(function, logits: Tensor, targets: Tensor, temperature: float = 1.0, weights=(1.0, 0.3), **more):
    """Both results, and the gradient of a mixture of them."""
    leaf = logits.detach().clone().requires_grad_()
    logprob, entropy = function(leaf * 1, targets, temperature, **more)
    rows = torch.arange(1, len(targets) + 1, dtype=logprob.dtype)
    (weights[0] * rows * logprob + weights[1] * entropy).sum().backward()
    return logprob.detach(), entropy.detach(), leaf.grad


def assert_equal_results(got, want, tolerance: tuple[float, float]) -> None:
    for a, b in zip(got[:2], want[:2], strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance[0], atol=tolerance[0], equal_nan=True)
    torch.testing.assert_close(got[2], want[2], rtol=tolerance[1], atol=tolerance[1], equal_nan=True)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_equals_the_definition(shape, dtype, temperature):
    logits, targets = draw(SHAPES[shape], dtype)
    got = call(token_logprob, logits, targets, temperature)
    want = call(token_logprob_reference, logits.double(), targets, temperature)
    assert_equal_results([result.double() for result in got], want, TOLERANCE[dtype])


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(0, 9),
    columns=st.integers(1, 3000),
    seed=st.integers(0, 2**31),
    scale=st.sampled_from([0.0, 1.0, 30.0, 300.0]),
    temperature=st.sampled_from([0.2, 1.0, 3.0]),
    weights=st.sampled_from([(1.0, 0.0), (0.0, 1.0), (1.0, -0.5)]),
)
def test_equals_the_definition_on_any_logits(rows, columns, seed, scale, temperature, weights):
    logits, targets = draw((rows, columns), torch.float64, scale, seed)
    got = call(token_logprob, logits, targets, temperature, weights)
    want = call(token_logprob_reference, logits, targets, temperature, weights)
    assert_equal_results(got, want, (1e-11, 1e-11))


@pytest.mark.parametrize("function", [token_logprob, token_logprob_reference])
def test_known_values(function):
    logits = torch.tensor([[0.0, math.log(3.0)], [5.0, 5.0]])
    logprob, entropy = function(logits, torch.tensor([1, 0]))
    assert logprob.tolist() == pytest.approx([math.log(0.75), math.log(0.5)])
    assert entropy.tolist() == pytest.approx([-0.75 * math.log(0.75) - 0.25 * math.log(0.25), math.log(2.0)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_long_sums_lose_no_digits(dtype):
    """150,000 terms: float32 log_softmax is 6e-5 off here."""
    logits, targets = draw((4, 151_936), dtype, scale=3.0)
    logprob, entropy = token_logprob(logits, targets)
    exact = token_logprob_reference(logits.double(), targets)
    assert (logprob - exact.logprob).abs().max() < 4e-6
    assert (entropy - exact.entropy).abs().max() < 4e-6


def test_gradient_is_the_derivative():
    logits, targets = draw((3, 5), torch.float64, scale=1.0)
    logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: tuple(token_logprob(x, targets, 0.7)), (logits,))


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_banned_ids_have_no_probability_and_no_gradient(dtype):
    logits, targets = draw((4, 40), dtype)
    logits[:, ::3] = -INF
    targets[:] = torch.tensor([1, 2, 4, 5])
    got = call(token_logprob, logits, targets)
    allowed = torch.arange(40) % 3 != 0
    position = allowed.cumsum(0) - 1
    want = call(token_logprob_reference, logits[:, allowed], position[targets])
    assert_equal_results((*got[:2], got[2][:, allowed]), want, TOLERANCE[dtype])
    assert not got[2][:, ~allowed].any()


def test_a_banned_target_has_logprob_minus_infinity():
    logits = torch.tensor([[0.0, -INF, 1.0]])
    assert token_logprob(logits, torch.tensor([1])).logprob.item() == -INF


BROKEN_ROWS = {
    "nan": [0.0, math.nan, 1.0],
    "infinite": [0.0, INF, 1.0],
    "all banned": [-INF, -INF, -INF],
}


@pytest.mark.parametrize("name", BROKEN_ROWS)
@pytest.mark.parametrize("function", [token_logprob, token_logprob_reference])
def test_a_broken_row_is_nan_and_the_others_are_not(name, function):
    logits = torch.tensor([[0.0, 1.0, 2.0], BROKEN_ROWS[name]])
    logprob, _, gradient = call(function, logits, torch.tensor([0, 0]))
    assert logprob.isnan().tolist() == [False, True]
    assert not gradient[0].isnan().any()
    assert gradient[1].isnan().any()


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_the_gradient_can_take_the_place_of_the_logits(dtype):
    logits, targets = draw((6, 1030), dtype)
    want = call(token_logprob, logits, targets)
    leaf = logits.clone().requires_grad_()
    hidden = leaf * 1
    logprob, entropy = token_logprob(hidden, targets, inplace_backward=True)
    loss = (torch.arange(1, 7, dtype=logprob.dtype) * logprob + 0.3 * entropy).sum()
    loss.backward(retain_graph=True)
    assert torch.equal(leaf.grad, want[2])
    assert torch.equal(hidden, want[2])
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_rows_without_credit_get_zeros():
    logits, targets = draw((3, 50), torch.float32)
    logits[1] = math.nan  # not read on the way back
    logits.requires_grad_()
    logprob, _ = token_logprob(logits, targets)
    logprob.backward(torch.tensor([1.0, 0.0, -1.0]))
    assert not logits.grad[1].any()
    assert logits.grad[0].any()


def test_reads_rows_and_columns_that_are_apart():
    logits, targets = draw((6, 40), torch.float32)
    sliced, transposed = logits[::2, 3:30], logits.t()[:6, :]
    for view in (sliced, transposed):
        chosen = targets[: len(view)] % view.shape[1]
        assert not view.is_contiguous()
        want = call(token_logprob, view.contiguous(), chosen)
        leaf = view.detach().requires_grad_()
        logprob, entropy = token_logprob(leaf, chosen)
        (torch.arange(1, len(view) + 1) * logprob + 0.3 * entropy).sum().backward()
        assert_equal_results((logprob.detach(), entropy.detach(), leaf.grad), want, (0.0, 0.0))


def test_many_threads_give_the_same_bits():
    logits, targets = draw((64, 2048), torch.float32)
    threads = torch.get_num_threads()
    results = []
    for count in (1, 2):
        torch.set_num_threads(count)
        results.append(call(token_logprob, logits, targets))
    torch.set_num_threads(threads)
    assert_equal_results(*results, (0.0, 0.0))


ROW, TARGET = torch.zeros(1, 3), torch.tensor([0])
ERRORS = {
    "vector": ((torch.zeros(3), TARGET), "logits must have two dimensions"),
    "integers": ((ROW.int(), TARGET), "logits must be Float, BFloat16 or Half"),
    "no columns": ((torch.zeros(1, 0), TARGET), "at least one column"),
    "too few targets": ((torch.zeros(2, 3), TARGET), "targets must have 2 entries, not 1"),
    "out of range": ((torch.zeros(2, 3), torch.tensor([0, 3])), "target 1 is 3, but there are 3 logits"),
    "ignore index": ((ROW, torch.tensor([-100])), "target 0 is -100"),
    "greedy": ((ROW, TARGET, 0.0), "temperature must be above 0, not 0"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_says_what_is_wrong(name):
    arguments, words = ERRORS[name]
    with pytest.raises(RuntimeError, match=words):
        token_logprob(*arguments)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_is_a_well_behaved_torch_op(dtype):
    logits, targets = draw((4, 19), dtype)
    ops = torch.ops.diva_engine
    opcheck(ops.token_logprob.default, (logits.clone().requires_grad_(), targets, 0.9))
    results = ops.token_logprob(logits, targets, 0.9)
    for op in (ops.token_logprob_backward, ops.token_logprob_backward_):
        opcheck(op.default, (logits.clone(), targets, *results, torch.ones(4), None, 0.9))


@pytest.mark.parametrize("inplace", [False, True])
def test_compiles_without_a_break(inplace):
    logits, targets = draw((4, 19), torch.float32)

    def mean_logprob(leaf: Tensor) -> Tensor:
        return token_logprob(leaf * 2, targets, inplace_backward=inplace).logprob.mean()

    gradients = []
    for function in (mean_logprob, torch.compile(mean_logprob, fullgraph=True, backend="aot_eager")):
        leaf = logits.clone().requires_grad_()
        function(leaf).backward()
        gradients.append(leaf.grad)
    torch.testing.assert_close(*gradients)
