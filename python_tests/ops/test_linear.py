"""The linear layer equals its definition, forward and backward, whatever path its products take."""

from __future__ import annotations

import pytest
import torch

import diva_engine.ops.linear as linear_module
from diva_engine.ops.linear import linear, linear_reference

CASES = {  # leading shape of the states, K, N, bias
    "one row": ((1,), 8, 5, True),
    "many rows": ((300,), 96, 40, False),
    "batch of sequences": ((3, 7), 64, 128, True),
    "just below oneDNN": ((2, 53), 250, 264, True),
    "just above oneDNN": ((107,), 250, 264, True),
    "large, no bias": ((500,), 160, 200, False),
    "no rows": ((0,), 8, 5, True),
}


def make(case: str, dtype: torch.dtype = torch.float32) -> list[torch.Tensor | None]:
    leading, inputs, outputs, has_bias = CASES[case]
    draw = torch.Generator().manual_seed(3)
    shapes = [(*leading, inputs), (outputs, inputs), (outputs,) if has_bias else None]
    return [None if s is None else torch.randn(s, generator=draw).to(dtype).requires_grad_() for s in shapes]


def results(function, tensors) -> list[torch.Tensor]:
    output = function(*tensors)
    weights = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)
    inputs = [tensor for tensor in tensors if tensor is not None]
    return [output, *torch.autograd.grad((output * weights).sum(), inputs)]


@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_are_the_definitions(case: str) -> None:
    tensors = make(case)
    exact = results(linear_reference, [None if t is None else t.detach().double().requires_grad_() for t in tensors])
    for found, expected in zip(results(linear, tensors), exact, strict=True):
        # Sums of up to 500 products of about 1 each.
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=5e-5)


@pytest.mark.parametrize("case", CASES)
def test_without_gradients_the_values_are_the_same_bits(case: str) -> None:
    tensors = make(case)
    with_gradient = linear(*tensors)
    with torch.no_grad():
        without = linear(*tensors)
    assert torch.equal(without, with_gradient)
    assert without.shape == with_gradient.shape


@pytest.mark.parametrize(("case", "is_large"), [("just below oneDNN", False), ("just above oneDNN", True)])
def test_large_float32_products_on_this_processor_take_onednn(case: str, is_large: bool) -> None:
    if not linear_module._HAS_ONEDNN:
        pytest.skip("this torch has no oneDNN for this processor")
    graph = linear(*make(case)).grad_fn
    names = [type(node).__name__ for node in (graph, *(node for node, _ in graph.next_functions))]
    assert any("OneDnnLinear" in name for name in names) == is_large


def test_other_types_are_torchs_own() -> None:
    tensors = make("batch of sequences", torch.bfloat16)
    assert torch.equal(linear(*tensors), torch.nn.functional.linear(*tensors))


def test_frozen_inputs_get_no_gradient() -> None:
    states, weight, bias = make("many rows")
    linear(states.detach(), weight, bias).sum().backward()
    assert states.grad is None
    assert weight.grad is not None
    linear(states, weight.detach(), bias).sum().backward()
    assert states.grad is not None
