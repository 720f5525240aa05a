from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bench.memory import can_measure, peak_bytes
from diva_engine.ops import token_logprob
from diva_engine.ops.token_logprob import token_logprob_reference

pytestmark = pytest.mark.skipif(not can_measure("cpu"), reason="reads the peak of resident memory from Linux")


def test_sees_a_tensor_come_and_go():
    assert peak_bytes(lambda: torch.ones(10_000_000), "cpu") == pytest.approx(40e6, rel=0.05)


def test_token_logprob_needs_little_memory_beside_the_logits():
    logits = torch.randn(32, 151_936).bfloat16()
    targets = torch.zeros(32, dtype=torch.int64)
    call(logits[:1], targets[:1])  # what the first call loads is not the op's
    needed = {
        "in place": peak_bytes(lambda: call(logits, targets, inplace_backward=True), "cpu"),
        "ours": peak_bytes(lambda: call(logits, targets), "cpu"),
        "definition": peak_bytes(lambda: call(logits, targets, token_logprob_reference), "cpu"),
    }
    assert needed["in place"] < 1.4 * logits.nbytes  # call works on a copy
    assert needed["ours"] < 2.4 * logits.nbytes
    assert needed["ours"] < 0.5 * needed["definition"]


def call(logits: Tensor, targets: Tensor, function=token_logprob, **more) -> None:
    leaf = logits.clone().requires_grad_()
    function(leaf, targets, **more).logprob.sum().backward()
