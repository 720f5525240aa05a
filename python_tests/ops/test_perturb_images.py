from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.library import opcheck

from diva_engine.ops import pack_images, perturb_images, perturb_packed, plan_perturbations
from diva_engine.ops.perturb_images import perturb_images_reference
from diva_engine.records import ImageOperation
from python_tests.ops import pictures
from python_tests.ops.pictures import EXACT, OPERATIONS, SEED, difference, flat_image, noise_image, one

STRENGTHS = {
    "rotate": [0.0, 0.45, 17.3, 30.0, 45.0, 90.0, 180.0, -90.0, 361.0],
    **{name: [0.0, 0.05, 0.3, 0.45, 1.0] for name in OPERATIONS if name != "rotate"},
}


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("expand", [False, True])
def test_equals_the_definition(name, expand):
    images = [noise_image(size, i) for i, size in enumerate(pictures.SIZES)]
    for strength in STRENGTHS[name]:
        arguments = [images, [[ImageOperation(name, strength)]] * len(images)]
        options = {"keys": range(len(images)), "seed": SEED, "expand_canvas": expand}
        results = perturb_images(*arguments, **options)
        for result, wanted in zip(results, perturb_images_reference(*arguments, **options), strict=True):
            assert difference(result, wanted) <= (0 if name in EXACT else 1), (strength, result.shape)


@settings(max_examples=40, deadline=None)
@given(
    batch=st.lists(st.tuples(pictures.sizes, pictures.single_operations), max_size=5),
    seed=st.integers(0, 2**64 - 1),
    key=st.integers(-(2**63), 2**64 - 1),
    expand=st.booleans(),
)
def test_equals_the_definition_on_any_ragged_batch(batch, seed, key, expand):
    images = [noise_image(size, i) for i, (size, _) in enumerate(batch)]
    operations = [[operation] for _, operation in batch]
    options = {"keys": [key + i for i in range(len(batch))], "seed": seed, "expand_canvas": expand}
    results = perturb_images(images, operations, **options)
    wanted = perturb_images_reference(images, operations, **options)
    for result, want, (_, operation) in zip(results, wanted, batch, strict=True):
        assert difference(result, want) <= (0 if operation.name in EXACT else 1), operation


@settings(max_examples=25, deadline=None)
@given(size=pictures.sizes, chain=st.lists(pictures.single_operations, max_size=4))
def test_a_chain_is_its_operations_one_by_one(size, chain):
    """Each operation alone, at its place in the list, behind others that do nothing."""
    image = noise_image(size)
    nothing = ImageOperation("gaussian", 0.0)
    stepwise = image
    for slot, operation in enumerate(chain):
        stepwise = perturb_images([stepwise], [[nothing] * slot + [operation]], keys=[3], seed=SEED)[0]
    assert torch.equal(perturb_images([image], [chain], keys=[3], seed=SEED)[0], stepwise)


# ---- noise belongs to (seed, key, place in the list, pixel) and to nothing else ----

CHAIN = [OPERATIONS[name] for name in ("rotate", "gaussian", "salt_pepper", "blur")]


def test_batch_and_order_leave_no_trace():
    images = [noise_image(size, i) for i, size in enumerate(pictures.SIZES)]
    keys = [7 * i for i in range(len(images))]
    together = perturb_images(images, [CHAIN] * len(images), keys=keys, seed=SEED)
    backwards = perturb_images(images[::-1], [CHAIN] * len(images), keys=keys[::-1], seed=SEED)[::-1]
    for image, key, a, b in zip(images, keys, together, backwards, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, perturb_images([image], [CHAIN], keys=[key], seed=SEED)[0])


def test_many_threads_give_the_same_bits():
    images = [noise_image((301, 257, 3)), noise_image((97, 64, 4))]
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    parallel = perturb_images(images * 3, [CHAIN] * 6, keys=range(6), seed=SEED)
    parallel += perturb_images(images[:1], [CHAIN], keys=[0], seed=SEED)
    torch.set_num_threads(1)
    serial = perturb_images(images * 3, [CHAIN] * 6, keys=range(6), seed=SEED)
    serial += perturb_images(images[:1], [CHAIN], keys=[0], seed=SEED)
    torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(parallel, serial, strict=True))


@pytest.mark.parametrize("name", sorted(EXACT))
def test_another_seed_key_or_place_gives_other_noise(name):
    grey = flat_image((64, 64, 3), [128, 130, 140])
    operation = OPERATIONS[name]
    draws = [
        one(grey, name, operation.strength, key=1, seed=1),
        one(grey, name, operation.strength, key=2, seed=1),
        one(grey, name, operation.strength, key=1 + 2**32, seed=1),
        one(grey, name, operation.strength, key=1, seed=2),
        one(grey, name, operation.strength, key=1, seed=1 + 2**32),
        perturb_images([grey], [[ImageOperation("blur", 0.0), operation]], keys=[1], seed=1)[0],
    ]
    assert all(not torch.equal(a, b) for i, a in enumerate(draws) for b in draws[:i])


def test_philox_is_the_published_one():
    """Known answer of Philox4x32-10 for counter 0 and key 0 (Random123): the first draw picks the quantile."""
    from diva_engine.ops.perturbation_definition import draws16, philox_words

    assert [hex(word) for word in philox_words(0, 0, 0, 1)[0].tolist()] == [
        "0x6627e8d5",
        "0xe169c58d",
        "0xbc57ac4c",
        "0x9b00dbd8",
    ]
    assert draws16(0, 0, 0, 3).tolist() == [0xE8D5, 0x6627, 0xC58D]


# ---- strength means what the documentation says ----


def test_nothing_is_nothing():
    assert perturb_images([], [], keys=[], seed=1) == []


def test_no_operations_copy_the_image():
    image = noise_image((33, 31, 3))
    result = perturb_images([image], [[]], keys=[0], seed=1)[0]
    assert torch.equal(result, image)
    assert result.data_ptr() != image.data_ptr()


@pytest.mark.parametrize("name", OPERATIONS)
def test_reads_strided_input_and_leaves_it_alone(name):
    wide = noise_image((40, 60, 3))
    view = wide[::2, 5:50].flip(1)
    before = view.clone()
    result = one(view, name, OPERATIONS[name].strength)
    assert torch.equal(result, one(before, name, OPERATIONS[name].strength))
    assert torch.equal(view, before)


ERRORS = {
    "float image": (torch.zeros(4, 4, 3), "blur", 0.3, "image 0 must be uint8, not torch.float32"),
    "two channels": (noise_image((4, 4, 1)).expand(-1, -1, 2), "blur", 0.3, "C 1, 3 or 4"),
    "matrix": (noise_image((4, 4, 1))[..., 0], "blur", 0.3, r"must be \[H, W, C\]"),
    "no rows": (torch.zeros(0, 4, 3, dtype=torch.uint8), "blur", 0.3, "sides of 1 to 16384"),
    "too strong": (noise_image((4, 4, 3)), "blur", 1.5, r"strength of blur must be in \[0, 1\], not 1.5"),
    "negative": (noise_image((4, 4, 3)), "gaussian", -0.1, "must be in"),
    "nan": (noise_image((4, 4, 3)), "gaussian", float("nan"), "must be a number, not nan"),
    "endless turn": (noise_image((4, 4, 3)), "rotate", float("inf"), "must be a number, not inf"),
    "unknown": (noise_image((4, 4, 3)), "sharpen", 0.3, "no image operation 'sharpen'"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_says_what_is_wrong(name):
    image, operation, strength, words = ERRORS[name]
    with pytest.raises(ValueError, match=words):
        one(image, operation, strength)


def test_counts_must_agree():
    with pytest.raises(ValueError, match="2 images, 1 lists of operations and 2 keys"):
        perturb_images([noise_image((4, 4, 3))] * 2, [[]], keys=[0, 1], seed=1)


def test_a_plan_for_other_images_is_refused():
    batch = pack_images([noise_image((4, 4, 3))])
    plan = plan_perturbations([(40, 40, 3)], [0], [[]], [0])
    with pytest.raises(RuntimeError, match="plan made for other images"):
        perturb_packed(batch, plan, seed=1)


def op_arguments():
    batch = pack_images([noise_image((20, 30, 3)), noise_image((7, 5, 1))])
    plan = plan_perturbations(batch.sizes, batch.offsets, [CHAIN, []], [1, 2])
    tensors = (batch.pixels, plan.stages, plan.points, plan.tables, plan.tiles)
    return (*tensors, list(plan.launches), 5, plan.scratch_bytes, plan.output_bytes)


def test_is_a_well_behaved_torch_op():
    opcheck(torch.ops.diva_engine.perturb_images.default, op_arguments())


def test_compiles_without_a_break():
    batch = pack_images([noise_image((20, 30, 3))])
    plan = plan_perturbations(batch.sizes, batch.offsets, [CHAIN], [1])
    compiled = torch.compile(lambda b: perturb_packed(b, plan, 5).pixels.int() * 2, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(batch), perturb_packed(batch, plan, 5).pixels.int() * 2)
