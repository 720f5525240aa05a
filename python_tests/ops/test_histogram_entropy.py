from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.library import opcheck

from diva_engine.ops import histogram_entropy, pack_images
from diva_engine.ops.histogram_entropy import histogram_entropy_reference
from python_tests.ops import pictures
from python_tests.ops.pictures import flat_image, noise_image

# image -> nats, worked out by hand
GOLDEN = {
    "one pixel": (flat_image((1, 1, 3), [1, 2, 3]), 0.0),
    "one grey": (flat_image((31, 33, 1), [200]), 0.0),
    "one colour": (flat_image((100, 99, 3), [250, 120, 10]), 0.0),
    "two halves": (torch.tensor([0, 255], dtype=torch.uint8).view(1, 2, 1).expand(8, 2, 1), math.log(2)),
    "every level once": (torch.arange(256, dtype=torch.uint8).view(16, 16, 1), math.log(256)),
    "one in four": (torch.tensor([9, 9, 9, 7], dtype=torch.uint8).view(2, 2, 1), math.log(4) - 0.75 * math.log(3)),
    "same grey of other colours": (torch.tensor([[[255, 0, 0], [77, 77, 77]]], dtype=torch.uint8), 0.0),
    "alpha does not count": (torch.tensor([[[5, 5, 5, 0], [5, 5, 5, 255]]], dtype=torch.uint8), 0.0),
}


@pytest.mark.parametrize("name", GOLDEN)
@pytest.mark.parametrize("function", [histogram_entropy, histogram_entropy_reference])
def test_known_values(name, function):
    image, nats = GOLDEN[name]
    assert function([image]).tolist() == pytest.approx([nats], abs=1e-7)


@pytest.mark.parametrize("value", range(0, 256, 15))
@pytest.mark.parametrize("size", [(1, 3, 1), (7, 13, 1), (511, 257, 1)])
def test_one_grey_has_exactly_no_entropy(value, size):
    assert histogram_entropy([flat_image(size, [value])]).item() == 0.0


@settings(max_examples=40, deadline=None)
@given(sizes=st.lists(pictures.sizes, max_size=6), levels=st.integers(1, 255))
def test_equals_the_definition_on_any_ragged_batch(sizes, levels):
    images = [noise_image(size, i) % levels for i, size in enumerate(sizes)]
    torch.testing.assert_close(histogram_entropy(images), histogram_entropy_reference(images), rtol=1e-6, atol=1e-7)


def test_reads_strided_input():
    view = noise_image((40, 60, 3))[::2, 5:50]
    assert histogram_entropy([view]).item() == histogram_entropy([view.contiguous()]).item()


def test_many_threads_give_the_same_bits():
    images = [noise_image((50, 61, 3), i) for i in range(9)]
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    parallel = histogram_entropy(images)
    torch.set_num_threads(1)
    assert torch.equal(histogram_entropy(images), parallel)
    torch.set_num_threads(threads)


def test_nothing_is_nothing():
    assert histogram_entropy([]).shape == (0,)


def test_an_image_outside_the_pixels_is_refused():
    with pytest.raises(RuntimeError, match="image 1 is empty or lies outside"):
        torch.ops.diva_engine.histogram_entropy(
            torch.zeros(12, dtype=torch.uint8), torch.tensor([[0, 2, 2, 3], [4, 3, 3, 1]])
        )


def test_is_a_well_behaved_torch_op():
    batch = pack_images([noise_image((20, 30, 3)), noise_image((7, 5, 1))])
    table = torch.tensor([[offset, *size] for offset, size in zip(batch.offsets, batch.sizes, strict=True)])
    opcheck(torch.ops.diva_engine.histogram_entropy.default, (batch.pixels, table))


def test_compiles_without_a_break():
    batch = pack_images([noise_image((20, 30, 3))])
    compiled = torch.compile(lambda b: histogram_entropy(b) * 2, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(batch), histogram_entropy(batch) * 2)
