"""Variants become prompts: tokens, positions and pixels as the model's own processor makes them."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from PIL import Image
from transformers import Qwen2_5_VLProcessor, Qwen2VLVideoProcessor

from diva_engine.data.prompts import PromptEncoder, PromptTooLong
from diva_engine.records import ImageOperation, Processor, UserError, Variant
from python_tests.data.pictures import encoded, original, problem_of, random_picture, random_png, tiny_processor

IMAGE = 262


def encoder_of(patch_size: int = 14, **settings) -> PromptEncoder:
    return PromptEncoder(tiny_processor(patch_size), **settings)


QUESTIONS = {
    "text only": ("what is 1 + 1?", []),
    "one image": ("<image>what is it?", [(84, 56)]),
    "image in the middle": ("look at <image> and say", [(56, 56)]),
    "three images": ("<image><image> or <image>?", [(84, 56), (56, 140), (28, 28)]),
    "odd sizes": ("<image>?", [(97, 61)]),
}


@pytest.mark.parametrize("case", QUESTIONS)
def test_prompts_equal_those_of_the_transformers_processor(case):
    text, sizes = QUESTIONS[case]
    images = [random_picture(width, height, seed) for seed, (width, height) in enumerate(sizes)]
    prompt = encoder_of().encode(original(problem_of(text, *map(encoded, images))), key=0)
    parts = tiny_processor()
    reference = Qwen2_5_VLProcessor(parts.image_processor, parts.tokenizer, Qwen2VLVideoProcessor())
    features = reference(text=[prompt.text], images=images or None, return_tensors="pt")
    assert list(prompt.token_ids) == features["input_ids"][0].tolist()
    assert prompt.position_ids.shape == (3, len(prompt.token_ids))
    assert prompt.position_ids.dtype == torch.int64
    if images:
        assert torch.equal(prompt.pixel_values, features["pixel_values"])
        assert torch.equal(prompt.image_grid_thw, features["image_grid_thw"])
    else:
        assert (prompt.pixel_values, prompt.image_grid_thw) == (None, None)


def test_the_chat_has_a_part_for_every_marker():
    prompt = encoder_of().encode(original(problem_of("a<image>b<image>c", random_png(), random_png(seed=1))), key=0)
    vision = "<|vision_start|><|image_pad|><|vision_end|>"
    assert prompt.text == f"<|im_start|>user\na{vision}b{vision}c<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize(("patch_size", "num_tokens"), [(14, 10), (16, 8)])
def test_patch_size_comes_from_the_processor(patch_size, num_tokens):
    prompt = encoder_of(patch_size).encode(original(problem_of("<image>", random_png(140, 56))), key=0)
    assert prompt.token_ids.count(IMAGE) == num_tokens
    assert prompt.pixel_values.shape == (4 * num_tokens, 3 * 2 * patch_size**2)


def test_the_image_processor_without_torchvision_will_do():
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    parts = tiny_processor()
    pil = replace(parts, image_processor=Qwen2VLImageProcessorPil(size=dict(parts.image_processor.size)))
    problem = problem_of("<image>a<image>", random_png(97, 61), random_png(56, 140))
    prompt = PromptEncoder(pil).encode(original(problem), key=0)
    usual = encoder_of().encode(original(problem), key=0)
    assert prompt.token_ids == usual.token_ids
    assert torch.equal(prompt.position_ids, usual.position_ids)
    assert prompt.pixel_values.dtype == torch.float32
    assert (prompt.pixel_values - usual.pixel_values).abs().max() < 0.3  # the two resize a little differently
    PromptEncoder(pil).check(problem)


def test_a_forced_beginning_is_tokenised_and_is_no_part_of_the_prompt():
    problem = problem_of("1 + 1?")
    plain = encoder_of().encode(original(problem), key=0)
    forced = encoder_of().encode(original(problem, answer_prefix="<think>\n"), key=0)
    assert forced.token_ids == plain.token_ids
    assert forced.prefix_ids == tuple(tiny_processor().tokenizer("<think>\n")["input_ids"])
    assert forced.position_ids.shape[1] == len(forced.token_ids)
    assert plain.prefix_ids == ()


def test_format_and_system_prompt(tmp_path):
    template = tmp_path / "math.jinja"
    template.write_text("{{ content | trim }} Think first.\n\n")
    encoder = encoder_of(format_prompt=template, system_prompt="Be brief.")
    prompt = encoder.encode(original(problem_of("  1 + 1?  ")), key=0)
    assert prompt.text == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\n1 + 1? Think first.<|im_end|>\n<|im_start|>assistant\n"
    )


def test_the_system_message_of_a_row_stands_unless_one_is_set():
    problem = problem_of("1?", extra={"system_prompt": "from the row"})
    assert "from the row" in encoder_of().encode(original(problem), key=0).text
    assert "from the row" not in encoder_of(system_prompt="set").encode(original(problem), key=0).text


NOISY = (ImageOperation("rotate", 20.0), ImageOperation("gaussian", 0.3))


def test_perturbed_pixels_depend_on_the_key_alone():
    problem = problem_of("<image>", random_png())
    encoder, other = encoder_of(), encoder_of()
    first = encoder.encode(original(problem, operations=NOISY), key=7)
    plain = encoder.encode(original(problem), key=7)
    again = other.encode(original(problem, operations=NOISY), key=7)
    another = encoder.encode(original(problem, operations=NOISY), key=8)
    assert torch.equal(first.pixel_values, again.pixel_values)
    assert not torch.equal(first.pixel_values, another.pixel_values)
    assert not torch.equal(first.pixel_values, plain.pixel_values)
    assert first.token_ids == plain.token_ids


def test_sampler_and_trainer_get_the_same_pixels():
    encoder = encoder_of()
    prompt = encoder.encode(original(problem_of("<image>", random_png()), operations=NOISY), key=1)
    features = tiny_processor().image_processor(images=list(prompt.images), return_tensors="pt")
    assert torch.equal(features["pixel_values"], prompt.pixel_values)


def test_text_is_drawn_into_the_first_image_and_left_out_of_the_prompt():
    problem = problem_of("<image>what is the sum of the tiles?", random_png(112, 112))
    variant = Variant(problem=problem, index=1, kind="text_in_image", text="See <image>.", difficulty=9.0)
    prompt = encoder_of().encode(variant, key=0)
    assert prompt.images[0].width == 112
    assert prompt.images[0].height > 112
    assert "sum of the tiles" not in prompt.text


def test_images_are_brought_between_the_pixel_bounds():
    big, small = random_png(200, 100), random_png(20, 10)
    encoder = encoder_of(min_pixels=50 * 50, max_pixels=100 * 100)
    prompt = encoder.encode(original(problem_of("<image><image>", big, small)), key=0)
    assert [image.size for image in prompt.images] == [(141, 70), (70, 35)]


def test_a_prompt_beyond_the_bound_is_refused_with_its_length():
    problem = problem_of("<image>" + "a" * 80, random_png())
    length = len(encoder_of().encode(original(problem), key=0).token_ids)
    encoder_of(max_prompt_length=length).encode(original(problem), key=0)
    for refuse in (lambda encoder: encoder.encode(original(problem), key=0), lambda encoder: encoder.check(problem)):
        with pytest.raises(PromptTooLong, match=f"a.parquet:0: the prompt has {length} tokens, more than"):
            refuse(encoder_of(max_prompt_length=length - 1))


@pytest.mark.parametrize("case", QUESTIONS)
def test_check_counts_the_tokens_without_decoding(case):
    text, sizes = QUESTIONS[case]
    images = [random_png(width, height, seed) for seed, (width, height) in enumerate(sizes)]
    cut = [data[: len(data) // 2] for data in images]  # headers alone are whole
    length = len(encoder_of().encode(original(problem_of(text, *images)), key=0).token_ids)
    encoder_of(max_prompt_length=length).check(problem_of(text, *cut))
    with pytest.raises(PromptTooLong):
        encoder_of(max_prompt_length=length - 1).check(problem_of(text, *cut))


REFUSED = {
    "marker without image": (problem_of("<image>?"), "1 <image> markers and 0 images"),
    "image without marker": (problem_of("?", random_png()), "0 <image> markers and 1 images"),
    "no image": (problem_of("<image>?", b"GIF89a"), "a.parquet:0: the image"),
    "too thin": (problem_of("<image>?", random_png(2000, 4)), "refuses 2000 x 4 pixels"),
    "placeholder in the text": (problem_of("<|image_pad|>?"), "1 image placeholders for 0 images"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_name_the_row_and_the_reason(case):
    problem, message = REFUSED[case]
    with pytest.raises(UserError, match=message):
        encoder_of().encode(original(problem), key=0)
    with pytest.raises(UserError, match=message):
        encoder_of().check(problem)


def test_a_text_model_refuses_images():
    parts = tiny_processor()
    processor = Processor(parts.tokenizer, None, None, 1, (), ())
    encoder = PromptEncoder(processor)
    assert encoder.encode(original(problem_of("1?")), key=0).pixel_values is None
    with pytest.raises(UserError, match="the model reads text only"):
        encoder.encode(original(problem_of("<image>1?", random_png())), key=0)


TEMPLATES = {
    "lost question": ("no content", "loses the question"),
    "unknown name": ("{{ question }}", "'question' is undefined"),
    "broken": ("{% if %}", "is not a Jinja template"),
    "forbidden": ("{{ content.__class__.__mro__ }}", "cannot be rendered"),
}


@pytest.mark.parametrize("case", TEMPLATES)
def test_a_bad_format_file_is_named(tmp_path, case):
    template, message = TEMPLATES[case]
    path = tmp_path / "format.jinja"
    path.write_text(template)
    variant = original(problem_of("<image>?", random_png()))
    with pytest.raises(UserError, match=message):
        encoder_of(format_prompt=path).encode(variant, key=0)


def test_originals_are_decoded_once_and_the_cache_is_bounded(monkeypatch):
    decoded = []
    real_open = Image.open
    monkeypatch.setattr(Image, "open", lambda file, **options: decoded.append(1) or real_open(file, **options))
    problem = problem_of("<image>", random_png())
    encoder = encoder_of()
    for key in range(3):
        encoder.encode(original(problem), key)
        encoder.encode(original(problem, operations=NOISY), key)
    assert len(decoded) == 1
    without = encoder_of(cache_bytes=0)
    for key in range(2):
        without.encode(original(problem), key)
    assert len(decoded) == 3


def test_threads_give_what_one_thread_gives():
    problems = [problem_of("<image>" + "a" * number, random_png(seed=number)) for number in range(8)]
    variants = [original(problem, operations=NOISY) for problem in problems] * 4
    expected = [encoder_of().encode(variant, key=3).pixel_values for variant in variants]
    encoder = encoder_of()
    with ThreadPoolExecutor(4) as pool:
        prompts = list(pool.map(lambda variant: encoder.encode(variant, key=3), variants))
    assert all(torch.equal(prompt.pixel_values, pixels) for prompt, pixels in zip(prompts, expected, strict=True))
    assert [len(prompt.token_ids) for prompt in prompts] == [len(prompts[0].token_ids) + n for n in range(8)] * 4


def test_images_of_a_prompt_are_decoded_pictures():
    data = random_png()
    prompt = encoder_of().encode(original(problem_of("<image>", data)), key=0)
    assert prompt.images[0].tobytes() == Image.open(io.BytesIO(data)).tobytes()
