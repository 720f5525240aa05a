"""Every attention over packed answer trees gives each token what it would get if its answer were alone."""

from __future__ import annotations

import random

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import flex_attention as torch_flex

from diva_engine.policy import tree_attention_flex, tree_attention_varlen
from diva_engine.policy.attention import lay_out_row
from diva_engine.policy.tree_shape import TreeShape

CPU = torch.device("cpu")
TOLERANCE = 1e-5


def random_shapes(seed: int, longest: int = 300) -> list[TreeShape]:
    draw = random.Random(seed)
    return [
        TreeShape(draw.randrange(1, longest), tuple(draw.randrange(longest // 2) for _ in range(draw.randrange(5))))
        for _ in range(draw.randrange(1, 4))
    ]


SHAPES = {
    "one answer": [TreeShape(5, (4,))],
    "ragged answers": [TreeShape(7, (4, 0, 8, 1))],
    "the first answer has no token in the row": [TreeShape(3, (0, 2, 5))],
    "a trunk of one token": [TreeShape(1, (3, 2))],
    "trunks alone": [TreeShape(4, ()), TreeShape(2, (0, 0)), TreeShape(1, ())],
    "several trees": [TreeShape(6, (2, 3)), TreeShape(4, ()), TreeShape(3, (0, 5, 1)), TreeShape(9, (7,))],
    "cut where blocks of keys are": [TreeShape(128, (128, 128)), TreeShape(256, (64, 64, 128))],
    "cut beside them": [TreeShape(127, (129, 1)), TreeShape(130, (400, 3))],
    **{f"random {seed}": random_shapes(seed) for seed in range(6)},
}


def random_states(
    shapes: list[TreeShape], *, device: str = "cpu", dtype: torch.dtype = torch.float32, head_size: int = 8
) -> list[Tensor]:
    """Query of 6 heads, key and value of 2 that it shares: [heads, W, head size]."""
    draw = torch.Generator().manual_seed(len(shapes))
    length = sum(shape.length for shape in shapes)
    states = [torch.randn(heads, length, head_size, generator=draw) for heads in (6, 2, 2)]
    return [state.to(device, dtype).requires_grad_() for state in states]


def attend_alone(query: Tensor, key: Tensor, value: Tensor, shapes: list[TreeShape]) -> Tensor:
    """Trunks and answers each by themselves, an answer after a copy of its trunk -> [W, heads, head size]."""
    outputs = []
    start = 0
    for shape in shapes:
        trunk = torch.arange(start, start + shape.trunk_length)
        own = torch.arange(start + shape.trunk_length, start + shape.length).split(shape.branch_lengths)
        for new, tokens in [(shape.trunk_length, trunk), *((len(b), torch.cat([trunk, b])) for b in own)]:
            states = (s[None, :, tokens.to(s.device)] for s in (query, key, value))
            alone = F.scaled_dot_product_attention(*states, is_causal=True, enable_gqa=True)[0]
            outputs.append(alone[:, alone.shape[1] - new :].transpose(0, 1))
        start += shape.length
    return torch.cat(outputs)


def gradients(output: Tensor, states: list[Tensor]) -> tuple[Tensor, ...]:
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).to(output)
    return torch.autograd.grad((output * weights).sum(), states)


def assert_same_gradients(output: Tensor, expected: Tensor, states: list[Tensor], tolerance: float) -> None:
    for found, wanted in zip(gradients(output, states), gradients(expected, states), strict=True):
        torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("case", SHAPES)
@pytest.mark.parametrize("name", ["sdpa", "flash_attention_2"])
def test_answers_attend_as_if_alone(name: str, case: str) -> None:
    """flash_attention_2 by its definition, which stands on the CPU where its kernel stands on a GPU."""
    shapes = SHAPES[case]
    states = random_states(shapes)
    output = lay_out_row(name, shapes, CPU).attend(*states)
    expected = attend_alone(*states, shapes)
    torch.testing.assert_close(output, expected, rtol=0, atol=TOLERANCE)
    assert_same_gradients(output, expected, states, TOLERANCE)


@pytest.mark.parametrize("case", SHAPES)
def test_flex_attends_as_if_alone_and_its_mask_gives_the_gradients(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch refuses a backward on CPUs by a check of the device alone. With the check taken away its dense, uncompiled
    backward runs: what the gradients prove is the mask, not the compiled kernels, which `gpu` tests run."""
    shapes = SHAPES[case]
    states = random_states(shapes)
    layout = lay_out_row("flex", shapes, CPU)
    expected = attend_alone(*states, shapes)
    output = layout.attend(*(state.detach() for state in states))
    torch.testing.assert_close(output, expected, rtol=0, atol=TOLERANCE)
    with pytest.raises(NotImplementedError, match="does not support backward on CPU"):
        layout.attend(*states)
    monkeypatch.setattr(torch_flex, "_validate_device", lambda *states: None)
    assert_same_gradients(layout.attend(*states), expected, states, TOLERANCE)


@pytest.mark.parametrize("case", SHAPES)
def test_flex_skips_the_blocks_that_torch_finds_hidden_in_the_whole_mask(case: str) -> None:
    ours = tree_attention_flex.lay_out(SHAPES[case], CPU).block_mask
    length = sum(shape.length for shape in SHAPES[case])
    whole = torch_flex.create_block_mask(ours.mask_mod, None, None, length, length, device="cpu")
    assert ours.shape == whole.shape
    for kind in ("kv", "full_kv", "q", "full_q"):
        counts, order = (getattr(ours, f"{kind}_{part}") for part in ("num_blocks", "indices"))
        assert torch.equal(counts, getattr(whole, f"{kind}_num_blocks"))
        for row, row_of_whole, count in zip(
            order[0, 0], getattr(whole, f"{kind}_indices")[0, 0], counts[0, 0].tolist(), strict=True
        ):
            assert row[:count].tolist() == row_of_whole[:count].tolist()


def test_each_token_is_seen_up_to_the_end_of_its_branch_or_tree() -> None:
    ends = tree_attention_flex.reader_ends([TreeShape(2, (2, 0, 1)), TreeShape(1, ()), TreeShape(1, (2,))])
    assert ends.tolist() == [5, 5, 4, 4, 5, 6, 9, 9, 9]


def test_a_trunk_and_its_first_answer_are_one_sequence() -> None:
    layout = tree_attention_varlen.lay_out([TreeShape(2, (0, 2, 1)), TreeShape(3, ()), TreeShape(1, (2, 3))], CPU)
    assert layout.query_starts.tolist() == [0, 4, 5, 8, 11, 14]
    assert layout.key_starts.tolist() == [0, 4, 7, 10, 13, 17]
    assert layout.key_tokens.tolist() == [0, 1, 2, 3, 0, 1, 4, 5, 6, 7, 8, 9, 10, 8, 11, 12, 13]
    assert (layout.max_queries, layout.max_keys) == (4, 4)
    assert layout.query_starts.dtype == layout.key_starts.dtype == torch.int32


def test_answers_without_siblings_copy_no_key() -> None:
    layout = tree_attention_varlen.lay_out([TreeShape(2, (3,)), TreeShape(4, (0, 1)), TreeShape(2, ())], CPU)
    assert layout.key_tokens is None
    assert layout.query_starts.tolist() == layout.key_starts.tolist() == [0, 5, 10, 12]


def test_the_gradient_of_a_trunk_read_by_many_answers_is_not_rounded_on_the_way() -> None:
    """In bfloat16 a running sum of ones stays at 256, on the CPU with rows of one number."""
    rows = torch.zeros(3, dtype=torch.bfloat16, requires_grad=True)
    index = torch.tensor([1] * 600 + [2])
    tree_attention_varlen._ReadRows.apply(rows, index).backward(torch.ones(601, dtype=torch.bfloat16))
    assert rows.grad.tolist() == [0, 600, 1]
