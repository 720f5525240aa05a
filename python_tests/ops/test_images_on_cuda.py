"""perturb_images and histogram_entropy on a GPU give the bits they give on the CPU."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

from diva_engine.ops import histogram_entropy, pack_images, perturb_images, perturb_packed, plan_perturbations
from diva_engine.records import ImageOperation
from python_tests.ops import pictures
from python_tests.ops.pictures import OPERATIONS, noise_image

pytestmark = pytest.mark.gpu

SEED = 0x123456789ABCDEF0
CHAINS = {
    **{name: [operation] for name, operation in OPERATIONS.items()},
    "nothing": [],
    "the paper's hardest": [OPERATIONS[name] for name in ("rotate", "gaussian", "salt_pepper", "blur")],
    "all": [*OPERATIONS.values(), ImageOperation("rotate", -200.0), ImageOperation("gaussian", 0.1)],
}


def ragged_images() -> list[Tensor]:
    sizes = [*pictures.SIZES, (512, 512, 3), (333, 1021, 4), (700, 501, 1)]
    return [noise_image(size, i) for i, size in enumerate(sizes)]


@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize("expand", [False, True])
def test_perturb_images_has_the_bits_of_the_cpu(name, expand):
    images = ragged_images()
    lists, keys = [CHAINS[name]] * len(images), range(len(images))
    want = perturb_images(images, lists, keys=keys, seed=SEED, expand_canvas=expand)
    got = perturb_images([i.cuda() for i in images], lists, keys=keys, seed=SEED, expand_canvas=expand)
    assert all(torch.equal(a.cpu(), b) for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize("gap", [1, 4, 15])
def test_images_may_begin_anywhere(gap):
    batch = pack_images(ragged_images())
    pixels = torch.cat([torch.zeros(gap, dtype=torch.uint8), batch.pixels])
    batch = type(batch)(pixels, tuple(offset + gap for offset in batch.offsets), batch.sizes)
    lists = list(CHAINS.values()) * len(batch)
    plan = plan_perturbations(batch.sizes, batch.offsets, lists[: len(batch)], range(len(batch)))
    on_cuda = type(batch)(pixels.cuda(), batch.offsets, batch.sizes)
    assert torch.equal(perturb_packed(on_cuda, plan, SEED).pixels.cpu(), perturb_packed(batch, plan, SEED).pixels)


def test_histogram_entropy_has_the_bits_of_the_cpu():
    images = [image % (3 + 17 * i % 250) for i, image in enumerate(ragged_images())]
    assert torch.equal(histogram_entropy([image.cuda() for image in images]).cpu(), histogram_entropy(images))


def arguments() -> tuple[tuple, tuple[Tensor, Tensor]]:
    """What the two torch ops are called with."""
    batch = pack_images([image.cuda() for image in ragged_images()])
    chains = [CHAINS["all"]] * len(batch)
    plan = plan_perturbations(batch.sizes, batch.offsets, chains, range(len(batch))).to(batch.pixels.device)
    tensors = (batch.pixels, plan.stages, plan.points, plan.tables, plan.tiles)
    table = [[offset, *size] for offset, size in zip(batch.offsets, batch.sizes, strict=True)]
    perturbation = (*tensors, list(plan.launches), 5, plan.scratch_bytes, plan.output_bytes)
    return perturbation, (batch.pixels, torch.tensor(table).cuda())


def work() -> Callable[[], list[Tensor]]:
    """Both ops, on the stream that is current when they are run."""
    perturbation, entropy = arguments()
    torch.cuda.synchronize()
    ops = torch.ops.diva_engine
    return lambda: [ops.perturb_images.default(*perturbation), ops.histogram_entropy.default(*entropy)]


def test_run_on_a_side_stream():
    run = work()
    want = run()
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        got = run()
    side.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_can_be_captured_in_a_graph():
    run = work()
    want = run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = run()
    graph.replay()
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_are_well_behaved_torch_ops():
    perturbation, entropy = arguments()
    opcheck(torch.ops.diva_engine.perturb_images.default, perturbation)
    opcheck(torch.ops.diva_engine.histogram_entropy.default, entropy)
