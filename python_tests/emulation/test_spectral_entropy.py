from __future__ import annotations

import ctypes
import math

import pytest
import torch

from diva_engine.ops import spectral_entropy
from python_tests.emulation import kernels
from python_tests.ops import test_spectral_entropy as on_cpu

SOURCE = "spectral_entropy/spectral_entropy_cuda.cu"
TYPES = [torch.float32, torch.bfloat16, torch.float16]  # in the order of DivaFeatureType
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return kernels.emulate(tmp_path_factory.mktemp("spectral_entropy"), SOURCE)


def run(library, features, offsets, max_patches=None):
    """Working memory begins as NaN, so that reading before writing shows."""
    num_patches, dimensions = features.shape
    side = min(num_patches, dimensions) if max_patches is None else min(max_patches, num_patches, dimensions)
    num_images = len(offsets) - 1
    means, grams = torch.full((num_images, dimensions), math.nan), torch.full((num_patches, side), math.nan)
    entropy = torch.full((num_images,), -7.0)
    kind = ctypes.c_int(TYPES.index(features.dtype))
    sizes = num_patches, dimensions, offsets, num_images, side
    kernels.launch(library, "diva_spectral_entropy_cuda", kind, features, *sizes, means, grams, entropy)
    return entropy


def differs(library, features, offsets, max_patches=None) -> bool:
    got, want = run(library, features, offsets, max_patches), spectral_entropy(features, offsets)
    return not torch.allclose(got, want, rtol=0, atol=TOLERANCE, equal_nan=True)


@pytest.mark.parametrize("shape", on_cpu.SHAPES)
@pytest.mark.parametrize("dtype", TYPES)
def test_the_kernel_equals_the_cpu(library, shape, dtype):
    assert not differs(library, *on_cpu.draw(*on_cpu.SHAPES[shape], dtype))


@pytest.mark.parametrize("name", on_cpu.KNOWN)
def test_known_values(library, name):
    features, entropy = on_cpu.KNOWN[name]
    features = torch.tensor(features)
    assert run(library, features, torch.tensor([0, len(features)])).item() == pytest.approx(entropy, abs=1e-6)


def test_less_working_memory_gives_the_same(library):
    features, offsets = on_cpu.draw([7, 20, 3], 24, torch.float32)
    assert not differs(library, features, offsets, max_patches=20)
    assert run(library, features, offsets, max_patches=19).isnan().tolist() == [False, True, False]


def test_broken_images_travel_alike(library):
    features, offsets = on_cpu.draw([4, 6, 5], 8, torch.float32)
    features[7, 3], features[12, 0] = math.nan, math.inf
    assert not differs(library, features, offsets)


FAULTS = {
    "no barrier before the products": {"start + depth);\n    }\n    __syncthreads();": "start + depth);\n    }"},
    "no barrier before the reflection changes the row": {"    __syncthreads();  // all have read next[j + 1]\n": ""},
    "only half of the matrix": {"      gram[j * side + i] = sums[a][b];\n": ""},
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_noticed(tmp_path, name):
    library = kernels.emulate(tmp_path, SOURCE, faults=FAULTS[name])
    assert differs(library, *on_cpu.draw([130, 20], 70, torch.float32))
