from __future__ import annotations

import pytest
import torch

from diva_engine.ops import pack_images, perturb_packed, plan_perturbations
from diva_engine.records import ImageOperation
from python_tests.emulation import kernels
from python_tests.ops import pictures
from python_tests.ops.pictures import OPERATIONS, noise_image

SOURCE = "perturb_images/perturb_images_cuda.cu"
SEED = 0x123456789ABCDEF0


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return kernels.emulate(tmp_path_factory.mktemp("perturb_images"), SOURCE)


def run(library, batch, plan):
    scratch = torch.full((max(1, plan.scratch_bytes),), 0x7F, dtype=torch.uint8)
    fills = torch.full((len(plan.stages) + 1,), -1, dtype=torch.int32)
    output = torch.full((plan.output_bytes + 16,), 0x7F, dtype=torch.uint8)
    launches = torch.tensor(plan.launches, dtype=torch.int64)
    tables = (batch.pixels, plan.stages, plan.points, plan.tables, plan.tiles, launches)
    memory = (scratch, plan.scratch_bytes, fills, output)
    kernels.launch(library, "diva_perturb_images_cuda", *tables, len(launches) // 2, SEED, *memory)
    assert (output[plan.output_bytes :] == 0x7F).all(), "written past the end"
    return output[: plan.output_bytes]


def both(library, images, operations, expand=False, gap=0):
    """What the kernels and the CPU op make of the images, which lie `gap` bytes off their usual place."""
    batch = pack_images(images)
    pixels = torch.cat([torch.zeros(gap, dtype=torch.uint8), batch.pixels])
    batch = type(batch)(pixels, tuple(offset + gap for offset in batch.offsets), batch.sizes)
    keys = range(7, 7 + len(images))
    plan = plan_perturbations(batch.sizes, batch.offsets, operations, keys, expand_canvas=expand)
    return run(library, batch, plan), perturb_packed(batch, plan, SEED).pixels


CHAINS = {
    **{name: [operation] for name, operation in OPERATIONS.items()},
    "nothing": [],
    "the paper's hardest": [OPERATIONS[name] for name in ("rotate", "gaussian", "salt_pepper", "blur")],
    "all": [*OPERATIONS.values(), ImageOperation("rotate", -200.0), ImageOperation("gaussian", 0.1)],
    "quarter turn": [ImageOperation("rotate", 90.0)],
}


@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize("expand", [False, True])
def test_the_kernels_have_the_bits_of_the_cpu(library, name, expand):
    images = [noise_image(size, i) for i, size in enumerate(pictures.SIZES)]
    got, want = both(library, images, [CHAINS[name]] * len(images), expand=expand)
    assert torch.equal(got, want)


def test_every_image_has_its_own_list(library):
    images = [noise_image(pictures.SIZES[i % len(pictures.SIZES)], i) for i in range(2 * len(CHAINS))]
    got, want = both(library, images, list(CHAINS.values()) * 2, expand=True)
    assert torch.equal(got, want)


@pytest.mark.parametrize("gap", [1, 4, 15])
def test_images_may_begin_anywhere(library, gap):
    images = [noise_image((33, 31, channels), channels) for channels in (1, 3, 4)]
    for chain in (CHAINS["nothing"], CHAINS["the paper's hardest"], CHAINS["blur"]):
        got, want = both(library, images, [chain] * 3, gap=gap)
        assert torch.equal(got, want)


@pytest.mark.parametrize("gap", [0, 1])
def test_a_wide_blur(library, gap):
    images = [noise_image((200, 131, channels), channels) for channels in (1, 3, 4)]
    got, want = both(library, images, [[ImageOperation("blur", 1.0)]] * 3, gap=gap)
    assert torch.equal(got, want)


def test_nothing_to_do(library):
    got, want = both(library, [], [])
    assert got.tolist() == want.tolist() == []


def test_blocks_stride_over_the_tiles(library):
    """More tiles than the emulated device holds blocks."""
    images = [noise_image((230, 241, 1)), noise_image((40, 70, 3))]
    got, want = both(library, images, [CHAINS["gaussian"] + CHAINS["rotate"], CHAINS["blur"]])
    assert torch.equal(got, want)


FAULTS = {
    "a dropped barrier before the tile is read": {"__syncthreads();\n    const uint4* from": "const uint4* from"},
    "a dropped barrier before the next tile": {"__syncthreads();  // no thread reads the last tile any more": ""},
    "the tile of another image": {"(t - stage.first_tile)": "t"},
    "half a warp's sum": {"half > 0": "half > 1"},
    "a missing warp": {"warp < kWarps": "warp < kWarps - 1"},
    "another quantile": {"static_cast<int16_t>(tables[i])": "static_cast<int16_t>(tables[i] + 9)"},
    "weights before they are there": {
        "load_weight_pairs(stage, tables, pairs);\n      __syncthreads();": "load_weight_pairs(stage, tables, pairs);"
    },
    "the wrong half of the scratch memory": {"dst_buffer == kPong ? buffers.half : 0": "dst_buffer == kPong ? 0 : 0"},
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_noticed(tmp_path, name):
    library = kernels.emulate(tmp_path, SOURCE, faults=FAULTS[name])
    images = [noise_image((40, 70, 3)), noise_image((230, 241, 1)), noise_image((64, 33, 4))]
    got, want = both(library, images, [CHAINS["the paper's hardest"]] * 3)
    assert not torch.equal(got, want)
