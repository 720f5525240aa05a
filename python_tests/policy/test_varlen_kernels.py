"""The kernels of flash_attention_2 and flex: how each is called, and on a GPU what it computes."""

from __future__ import annotations

import inspect
import sys
import types
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention.varlen import varlen_attn

from diva_engine.policy import tree_attention_varlen
from diva_engine.policy.attention import lay_out_row, refuse_untrainable_attention
from diva_engine.policy.tree_attention_varlen import find_kernel, varlen_attention_definition
from diva_engine.records import UserError
from python_tests.policy.test_tree_attention import SHAPES, assert_same_gradients, attend_alone, random_states

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def _find_anew() -> Any:
    find_kernel.cache_clear()
    yield
    find_kernel.cache_clear()


def flash_attn_2_8(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    block_table: Tensor | None = None,
) -> Tensor:
    """The published words of flash-attn 2.8's function, over the definition."""
    assert not deterministic
    limits = (cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
    return varlen_attention_definition(q, k, v, *limits, is_causal=causal)


def torch_2_10(query: Tensor, key: Tensor, value: Tensor, cu_seq_q: Tensor, cu_seq_k: Tensor, max_q: int, max_k: int,
               is_causal: bool = False, return_aux: Any = None) -> Tensor:  # fmt: skip
    assert query.shape[1] == key.shape[1]
    return varlen_attention_definition(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, is_causal=is_causal)


def torch_2_11(query: Tensor, key: Tensor, value: Tensor, cu_seq_q: Tensor, cu_seq_k: Tensor, max_q: int, max_k: int,
               *, return_aux: Any = None, scale: float | None = None,
               window_size: tuple[int, int] = (-1, -1)) -> Tensor:  # fmt: skip
    assert query.shape[1] == key.shape[1]
    is_causal = {(-1, 0): True, (-1, -1): False}[window_size]
    return varlen_attention_definition(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, is_causal=is_causal)


def torch_2_13(query: Tensor, key: Tensor, value: Tensor, *limits: Any, enable_gqa: bool = False,
               window_size: tuple[int, int] = (-1, -1), **kwargs: Any) -> Tensor:  # fmt: skip
    assert enable_gqa or query.shape[1] == key.shape[1]
    return torch_2_11(*(s.repeat_interleave(query.shape[1] // s.shape[1], 1) for s in (query, key, value)), *limits,
                      window_size=window_size)  # fmt: skip


def flash_attn_package(function: Any) -> types.ModuleType:
    package = types.ModuleType("flash_attn")
    package.__spec__ = types.SimpleNamespace()  # type: ignore[assignment]  # there is one, so it is installed
    if function is not None:
        package.flash_attn_varlen_func = function  # type: ignore[attr-defined]
    return package


def without_flash_attn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree_attention_varlen, "find_spec", lambda name: None)


KERNELS = {
    "flash-attn 2.8": flash_attn_2_8,
    "torch 2.10": torch_2_10,
    "torch 2.11": torch_2_11,
    "torch 2.13": torch_2_13,
}


@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize("kernel", KERNELS)
def test_kernels_are_called_by_their_words(kernel: str, is_causal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The definition behind the signature that each has; the kernels themselves run on GPUs only."""
    if kernel.startswith("torch"):
        without_flash_attn(monkeypatch)
        monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", KERNELS[kernel])
    else:
        monkeypatch.setitem(sys.modules, "flash_attn", flash_attn_package(KERNELS[kernel]))
    query, key, value = (state.transpose(0, 1) for state in random_states(SHAPES["several trees"]))
    layout = tree_attention_varlen.lay_out(SHAPES["several trees"], CPU)
    keys, values = (state[layout.key_tokens] for state in (key, value))
    limits = (layout.query_starts, layout.key_starts, layout.max_queries, layout.max_keys)
    found = find_kernel("cuda")(query, keys, values, *limits, is_causal=is_causal)
    expected = varlen_attention_definition(query, keys, values, *limits, is_causal=is_causal)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_this_torch_takes_the_call() -> None:
    """torch's own function, on tensors that have shapes but no numbers."""
    assert {"window_size", "enable_gqa"} <= inspect.signature(varlen_attn).parameters.keys()
    kernel = tree_attention_varlen._torch_kernel(varlen_attn)
    with FakeTensorMode():
        query, keys = torch.empty(9, 6, 16, dtype=torch.bfloat16), torch.empty(12, 2, 16, dtype=torch.bfloat16)
        starts = torch.empty(3, dtype=torch.int32)
        output = kernel(query, keys, keys, starts, starts, 5, 7, is_causal=True)
    assert (output.shape, output.dtype) == ((9, 6, 16), torch.bfloat16)


def test_flash_attn_that_cannot_be_imported_is_named_with_its_mend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flash_attn", flash_attn_package(None))
    with pytest.raises(UserError, match=r"flash-attn cannot be imported .*pip install flash-attn --no-build-isolation"):
        find_kernel("cuda")


def test_a_torch_without_the_kernel_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    without_flash_attn(monkeypatch)
    monkeypatch.setitem(sys.modules, "torch.nn.attention.varlen", None)
    with pytest.raises(UserError, match="pip install flash-attn --no-build-isolation, or use sdpa"):
        find_kernel("cuda")


REFUSED = {
    "eager": ("eager", CPU, torch.float32, "no such attention is known; use one of sdpa, flash_attention_2, flex"),
    "flex on a CPU": ("flex", CPU, torch.float32, "flex: torch has no backward pass of it on CPUs; use sdpa"),
    "flash on a CPU": ("flash_attention_2", CPU, torch.bfloat16, "run on GPUs only, not on cpu; use sdpa"),
    "flash in float32": ("flash_attention_2", GPU, torch.float32, "set worker.actor.model.torch_dtype=bfloat16, or"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_attention_that_cannot_train_is_refused_with_the_mend(case: str) -> None:
    *choice, words = REFUSED[case]
    with pytest.raises(UserError, match=words):
        refuse_untrainable_attention(*choice)


def test_attention_that_can_train_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_untrainable_attention("sdpa", CPU, torch.float32)
    refuse_untrainable_attention("flash_attention_2", GPU, torch.bfloat16)
    monkeypatch.setattr("diva_engine.policy.attention.find_spec", lambda name: None)
    with pytest.raises(UserError, match="triton, which is not installed; pip install triton"):
        refuse_untrainable_attention("flex", GPU, torch.float32)


@pytest.mark.gpu
@pytest.mark.parametrize("case", SHAPES)
def test_the_kernel_of_flash_attention_2_attends_as_if_alone(case: str) -> None:
    shapes = SHAPES[case]
    states = random_states(shapes, device="cuda", dtype=torch.bfloat16, head_size=64)
    output = lay_out_row("flash_attention_2", shapes, GPU).attend(*states)
    exact = [state.detach().float().requires_grad_() for state in states]
    expected = attend_alone(*exact, shapes)
    torch.testing.assert_close(output.float(), expected, rtol=2e-2, atol=2e-2)
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).cuda()
    found = torch.autograd.grad((output * weights).sum(), states)
    wanted = torch.autograd.grad((expected * weights).sum(), exact)
    for gradient, reference in zip(found, wanted, strict=True):
        scale = float(reference.abs().max())
        torch.testing.assert_close(gradient.float() / scale, reference / scale, rtol=0, atol=2e-2)


@pytest.mark.gpu
@pytest.mark.parametrize("case", SHAPES)
def test_the_kernel_of_flex_attends_as_if_alone(case: str) -> None:
    """The cases have rows of many lengths, all by one compiled function."""
    shapes = SHAPES[case]
    states = random_states(shapes, device="cuda", head_size=64)
    output = lay_out_row("flex", shapes, GPU).attend(*states)
    expected = attend_alone(*states, shapes)
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-4)
    assert_same_gradients(output, expected, states, 1e-4)


@pytest.mark.gpu
def test_flex_is_compiled_for_rows_of_all_lengths_at_once() -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    for case in ("random 0", "random 1", "random 2", "random 3", "random 4", "cut where blocks of keys are"):
        lay_out_row("flex", SHAPES[case], GPU).attend(*random_states(SHAPES[case], device="cuda", head_size=64))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 3
