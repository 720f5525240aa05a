from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.library import opcheck

from diva_engine.ops import spectral_entropy
from diva_engine.ops.spectral_entropy import spectral_entropy_reference
from python_tests.ops import ragged

TOLERANCE = {torch.float64: 1e-7, torch.float32: 1e-4, torch.bfloat16: 1e-4, torch.float16: 1e-4}

# patches of each image, dimensions
SHAPES = {
    "no image": ([], 8),
    "nothing to see": ([0, 1, 0], 8),
    "two patches": ([2, 3], 8),
    "one dimension": ([5, 1, 0, 9], 1),
    "ragged": ([3, 0, 1, 17, 40, 4], 24),
    "fewer patches": ([31, 33], 100),
    "more patches": ([100, 65, 64], 33),
    "square": ([32, 31], 32),
    "large": ([130], 70),
}


def draw(sizes: list[int], dimensions: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Features of falling variance around a mean that is much larger than they are."""
    generator = torch.Generator().manual_seed(seed)
    offsets = ragged.offsets_of(sizes)
    scale = torch.arange(1, dimensions + 1, dtype=torch.float64) ** -0.5
    features = torch.randn(int(offsets[-1]), dimensions, generator=generator, dtype=torch.float64) * scale + 5
    return features.to(dtype), offsets


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_equals_the_definition(shape, dtype):
    features, offsets = draw(*SHAPES[shape], dtype)
    got, want = spectral_entropy(features, offsets), spectral_entropy_reference(features.double(), offsets)
    torch.testing.assert_close(got.double(), want, rtol=0, atol=TOLERANCE[dtype])


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 40), max_size=6),
    dimensions=st.integers(1, 40),
    rank=st.integers(1, 40),
    seed=st.integers(0, 2**31),
    scale=st.sampled_from([1e-6, 1.0, 1e6]),
)
def test_equals_the_definition_on_any_images(sizes, dimensions, rank, seed, scale):
    generator = torch.Generator().manual_seed(seed)
    offsets = ragged.offsets_of(sizes)
    factors = (
        torch.randn(int(offsets[-1]), rank, generator=generator),
        torch.randn(rank, dimensions, generator=generator),
    )
    features = scale * (factors[0] @ factors[1]).double()
    got, want = spectral_entropy(features, offsets), spectral_entropy_reference(features, offsets)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-6)


KNOWN = {
    # features of one image -> entropy
    "a line": ([[0.0, 0.0], [1.0, 2.0], [3.0, 6.0]], 0.0),
    "a cross": ([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]], math.log(2.0)),
    "shares 0.8 and 0.2": ([[2.0, 0.0], [-2.0, 0.0], [0.0, 1.0], [0.0, -1.0]], 0.5004024235381879),
    "a simplex": (torch.eye(6).tolist(), math.log(5.0)),
    "equal patches": ([[0.1, 0.7, 0.3]] * 7, 0.0),
    "one patch": ([[1.0, 2.0]], 0.0),
}


@pytest.mark.parametrize("name", KNOWN)
@pytest.mark.parametrize("function", [spectral_entropy, spectral_entropy_reference])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_known_values(name, function, dtype):
    features, entropy = KNOWN[name]
    features = torch.tensor(features, dtype=dtype)
    assert function(features, torch.tensor([0, len(features)])).item() == pytest.approx(entropy, abs=1e-6)


def test_neither_scale_nor_shift_nor_rotation_matters():
    features, offsets = draw([20, 7], 12)
    rotation = torch.linalg.qr(torch.randn(12, 12, generator=torch.Generator().manual_seed(1)).double()).Q
    moved = 1e3 * features @ rotation + 17
    torch.testing.assert_close(spectral_entropy(moved, offsets), spectral_entropy(features, offsets), rtol=0, atol=1e-6)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_broken_image_is_nan_and_the_others_are_not(value):
    features, offsets = draw([4, 6, 5], 8, torch.float32)
    features[7, 3] = value
    assert spectral_entropy(features, offsets).isnan().tolist() == [False, True, False]


def test_reads_strided_input():
    features, offsets = draw([9, 5], 16, torch.float32)
    strided = features.t().contiguous().t()
    assert not strided.is_contiguous()
    assert torch.equal(spectral_entropy(strided, offsets), spectral_entropy(features, offsets))


def test_many_threads_give_the_same_bits():
    features, offsets = draw([9, 15, 33, 2] * 5, 16, torch.float32)
    threads = torch.get_num_threads()
    results = []
    for count in (1, 2):
        torch.set_num_threads(count)
        results.append(spectral_entropy(features, offsets))
    torch.set_num_threads(threads)
    assert torch.equal(*results)


FEATURES, OFFSETS = torch.ones(3, 2), torch.tensor([0, 3])
ERRORS = {
    "vector": ((torch.ones(3), OFFSETS), {}, "features must have two dimensions"),
    "integers": ((FEATURES.int(), OFFSETS), {}, "features must be Float, BFloat16 or Half"),
    "early end": ((FEATURES, torch.tensor([0, 2])), {}, "offsets must end with 3, not 2"),
    "larger than told": ((FEATURES, OFFSETS), {"max_patches": 2}, "image 0 has 3 patches, more than max_patches = 2"),
    "wants gradient": ((FEATURES.clone().requires_grad_(), OFFSETS), {}, "no gradient flows"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_says_what_is_wrong(name):
    arguments, chosen, words = ERRORS[name]
    with pytest.raises((RuntimeError, ValueError), match=words):
        spectral_entropy(*arguments, **chosen)


@pytest.mark.parametrize("sizes", [[3, 0, 5], []])
def test_is_a_well_behaved_torch_op(sizes):
    opcheck(torch.ops.diva_engine.spectral_entropy.default, (*draw(sizes, 6, torch.float32), None))


def test_compiles_without_a_break():
    features, offsets = draw([5, 4], 6, torch.float32)
    compiled = torch.compile(lambda f, o: spectral_entropy(f, o) * 2, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(features, offsets), spectral_entropy(features, offsets) * 2)
