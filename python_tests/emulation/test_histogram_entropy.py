from __future__ import annotations

import pytest
import torch

from diva_engine.ops import histogram_entropy, pack_images
from python_tests.emulation import kernels
from python_tests.ops import pictures
from python_tests.ops.pictures import flat_image, noise_image

SOURCE = "histogram_entropy/histogram_entropy_cuda.cu"


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return kernels.emulate(tmp_path_factory.mktemp("histogram_entropy"), SOURCE)


def run(library, batch):
    table = torch.tensor([[offset, *size] for offset, size in zip(batch.offsets, batch.sizes, strict=True)])
    histograms = torch.full((len(batch) * 256,), 7, dtype=torch.int32)
    entropy = torch.full((len(batch),), -7.0)
    kernels.launch(
        library, "diva_histogram_entropy_cuda", batch.pixels, table.reshape(-1, 4), len(batch), histograms, entropy
    )
    return entropy


def test_the_kernels_have_the_bits_of_the_cpu(library):
    images = [noise_image(size, i) % (3 + 25 * i) for i, size in enumerate(pictures.SIZES[:10])]
    batch = pack_images([*images, flat_image((70, 80, 3), [9, 8, 7])])
    assert torch.equal(run(library, batch), histogram_entropy(batch))


def test_nothing_to_do(library):
    assert run(library, pack_images([])).tolist() == []


FAULTS = {
    "another luma": {"grey_level(pixel[0], pixel[1], pixel[2])": "grey_level(pixel[2], pixel[1], pixel[0])"},
    "a dropped barrier": {"histogram[threadIdx.x] = 0;\n  __syncthreads();": "histogram[threadIdx.x] = 0;"},
    "a dropped barrier before the sum": {"threadIdx.x]);\n  __syncthreads();": "threadIdx.x]);"},
    "blocks that overlap": {"p += kBlocksAnImage * kHistogramThreads": "p += kHistogramThreads"},
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_noticed(tmp_path, name):
    library = kernels.emulate(tmp_path, SOURCE, faults=FAULTS[name])
    batch = pack_images([noise_image((120, 130, 3)), noise_image((60, 100, 1)) % 9])
    assert not torch.equal(run(library, batch), histogram_entropy(batch))
