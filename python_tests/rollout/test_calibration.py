"""Text-bias calibration: the engine and the transformers path against the formula on two plain forward passes."""

from __future__ import annotations

import dataclasses
import functools
import math
import tempfile

import pytest
import torch
from torch import Tensor

from diva_engine.policy.model import Policy, load_policy
from diva_engine.records import GenerationJob, Prompt, Rollout, Sampling, UserError
from diva_engine.rollout.calibrated_engine import CalibratedEngine, PairedDecoding
from diva_engine.rollout.calibration import TextBiasCalibration, calibrate, without_images
from diva_engine.rollout.decoding import PlainDecoding
from diva_engine.rollout.native_engine import NativeEngine
from python_tests.models import build_tiny_model
from python_tests.prompts import make_prompt, random_image

TOLERANCE = 1e-5
FAMILIES = ("qwen2_5_vl", "qwen3_vl")
GREEDY = Sampling(temperature=0, max_tokens=40)
INF = math.inf


@functools.cache
def tiny_policy(family: str) -> Policy:
    return load_policy(build_tiny_model(family, tempfile.mkdtemp(), num_layers=3))


def prompts_of(policy: Policy) -> list[Prompt]:
    """Different lengths and numbers of images; one without an image, one with a forced beginning."""
    pictures = [[random_image(84, 84)], [random_image(112, 56, 1), random_image(150, 90, 2)], []]
    texts = ["how many?", "which of them is larger, and why?", "2 + 2"]
    prompts = [make_prompt(policy.model, policy.processor, *case) for case in zip(texts, pictures, strict=True)]
    return [*prompts, make_prompt(policy.model, policy.processor, "count", pictures[0], prefix="<think> one")]


def plain_logits(policy: Policy, prompt: Prompt, answer: tuple[int, ...]) -> Tensor:
    """[tokens of the answer, V]: transformers' own forward over prompt and answer, at its own positions."""
    ids = torch.tensor([prompt.token_ids + prompt.prefix_ids + answer])
    inputs = {}
    if prompt.pixel_values is not None:
        inputs = {"pixel_values": prompt.pixel_values, "image_grid_thw": prompt.image_grid_thw}
        inputs["mm_token_type_ids"] = (ids == policy.processor.image_token_id).int()
    policy.model.model.rope_deltas = None
    with torch.no_grad():
        logits = policy.model(input_ids=ids, attention_mask=torch.ones_like(ids), **inputs).logits[0]
    first = len(prompt.token_ids) + len(prompt.prefix_ids) - 1
    return logits[first : first + len(answer)]


def formula(policy: Policy, prompt: Prompt, answer: tuple[int, ...], gamma: float) -> Tensor:
    image = plain_logits(policy, prompt, answer).double()
    text = plain_logits(policy, without_images(prompt, policy.processor), answer).double()
    return image + gamma * (image - text)


def banned(policy: Policy, logits: Tensor) -> Tensor:
    return logits.index_fill(1, torch.tensor(policy.processor.banned_ids), -INF)


def generated(policy: Policy, gamma: float, sampling: Sampling, seeds: tuple[int, ...] = (0,)) -> list[list[Rollout]]:
    engine = CalibratedEngine(policy.model, policy.processor, gamma=gamma)
    return engine.generate([GenerationJob(prompt, seeds) for prompt in prompts_of(policy)], sampling)


CASES = {
    "both finite": ([[2.0, 1.0]], [[1.0, 3.0]], [[2.5, 0.0]]),
    "banned on both sides": ([[2.0, -INF]], [[1.0, -INF]], [[2.5, -INF]]),
    "banned with the image": ([[2.0, -INF]], [[1.0, 3.0]], [[2.5, -INF]]),
    "banned without it": ([[2.0, 1.0]], [[1.0, -INF]], [[2.5, -INF]]),
}


@pytest.mark.parametrize(("image", "text", "expected"), CASES.values(), ids=CASES)
def test_the_formula(image: list[list[float]], text: list[list[float]], expected: list[list[float]]) -> None:
    assert calibrate(torch.tensor(image), torch.tensor(text), 0.5).tolist() == expected


@pytest.mark.parametrize("family", FAMILIES)
def test_the_prompt_without_images_is_the_prompt_never_given_any(family: str) -> None:
    policy = tiny_policy(family)
    for prompt in prompts_of(policy):
        blind = without_images(prompt, policy.processor)
        assert (blind.pixel_values, blind.image_grid_thw, blind.images) == (None, None, ())
        assert blind.prefix_ids == prompt.prefix_ids
    never = make_prompt(policy.model, policy.processor, "which of them is larger, and why?")
    blind = without_images(prompts_of(policy)[1], policy.processor)
    assert (blind.token_ids, blind.text) == (never.token_ids, never.text)
    assert torch.equal(blind.position_ids, never.position_ids)


@pytest.mark.parametrize("gamma", [0.0, 0.8])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_equal_the_formula_on_two_plain_forwards(family: str, gamma: float) -> None:
    policy = tiny_policy(family)
    prompts = prompts_of(policy)
    blind = [without_images(prompt, policy.processor) for prompt in prompts]
    answer = (5, 77, 130, 9, 201)
    expected = [formula(policy, prompt, answer, gamma) for prompt in prompts]
    with torch.no_grad():
        both = PlainDecoding(policy.model, [*prompts, *blind], torch.arange(2 * len(prompts)), 0, len(answer))
        decoding = PairedDecoding(both, gamma)
        logits, rows = decoding.first_logits, [0, 1, 2, 3]
        for place, token in enumerate(answer):
            wanted = torch.stack([expected[row][place] for row in rows])
            torch.testing.assert_close(logits.double(), wanted, rtol=0, atol=TOLERANCE)
            if place == 1:  # answers 0 and 2 end here and leave the batch, each with its text-only row
                rows = [1, 3]
                decoding.keep(torch.tensor(rows))
            logits = decoding.step(torch.full((len(rows),), token))


@pytest.mark.parametrize("family", FAMILIES)
def test_gamma_0_is_plain_decoding_token_for_token(family: str) -> None:
    policy = tiny_policy(family)
    plain = NativeEngine(policy.model, policy.processor)
    for sampling in (GREEDY, Sampling(temperature=0.9, max_tokens=30)):
        jobs = [GenerationJob(prompt, (3, 4)) for prompt in prompts_of(policy)]
        assert generated(policy, 0.0, sampling, (3, 4)) == plain.generate(jobs, sampling)


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_takes_the_largest_of_the_formula(family: str) -> None:
    policy = tiny_policy(family)
    differs = 0
    plain = generated(policy, 0.0, GREEDY)
    for prompt, [rollout], [uncalibrated] in zip(
        prompts_of(policy), generated(policy, 0.8, GREEDY), plain, strict=True
    ):
        logits = banned(policy, formula(policy, prompt, rollout.token_ids, 0.8))
        assert logits.argmax(dim=-1).tolist() == list(rollout.token_ids)
        if prompt.pixel_values is None:
            assert rollout.token_ids == uncalibrated.token_ids, "nothing to calibrate"
        differs += rollout.token_ids != uncalibrated.token_ids
    assert differs == 3


@pytest.mark.parametrize("family", FAMILIES)
def test_sampled_logprobs_are_those_of_the_formula(family: str) -> None:
    policy = tiny_policy(family)
    groups = generated(policy, 0.8, Sampling(temperature=0.7, max_tokens=25), seeds=(1, 2, 3))
    assert len({rollout.token_ids for group in groups for rollout in group}) == 12
    for prompt, group in zip(prompts_of(policy), groups, strict=True):
        for rollout in group:
            logits = banned(policy, formula(policy, prompt, rollout.token_ids, 0.8)) / 0.7
            expected = logits.log_softmax(dim=-1).gather(1, torch.tensor(rollout.token_ids)[:, None])[:, 0]
            torch.testing.assert_close(torch.tensor(rollout.logprobs).double(), expected, rtol=0, atol=5e-5)


def test_answers_do_not_depend_on_the_batch() -> None:
    policy = tiny_policy("qwen2_5_vl")
    sampling = Sampling(max_tokens=30)
    jobs = [GenerationJob(prompt, (7, 8)) for prompt in prompts_of(policy)]
    few = CalibratedEngine(policy.model, policy.processor, gamma=0.8, max_batch_rows=4).generate(jobs, sampling)
    tokens = [[rollout.token_ids for rollout in group] for group in few]
    assert tokens == [[r.token_ids for r in group] for group in generated(policy, 0.8, sampling, (7, 8))]


def hugging_face(policy: Policy, prompts: list[Prompt], calibration: TextBiasCalibration, **options) -> list[list[int]]:
    """transformers' own generate over a left-padded batch of prompts with images."""
    length = max(len(prompt.token_ids) for prompt in prompts)
    pad = policy.processor.tokenizer.pad_token_id
    ids = torch.tensor([[pad] * (length - len(prompt.token_ids)) + list(prompt.token_ids) for prompt in prompts])
    output = policy.model.generate(
        input_ids=ids,
        attention_mask=(ids != pad).int(),
        mm_token_type_ids=(ids == policy.processor.image_token_id).int(),
        pixel_values=torch.cat([prompt.pixel_values for prompt in prompts]),
        image_grid_thw=torch.cat([prompt.image_grid_thw for prompt in prompts]),
        suppress_tokens=list(policy.processor.banned_ids),
        max_new_tokens=40,
        logits_processor=[calibration],
        **options,
    )
    stops = set(policy.processor.stop_ids)
    answers = output[:, length:].tolist()
    return [row[: next((i for i, t in enumerate(row) if t in stops), len(row) - 1) + 1] for row in answers]


def text_only_batch(policy: Policy, prompts: list[Prompt], gamma: float) -> TextBiasCalibration:
    blind = [without_images(prompt, policy.processor).token_ids for prompt in prompts]
    length = max(map(len, blind))
    ids = torch.tensor([[0] * (length - len(row)) + list(row) for row in blind])
    mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in blind])
    return TextBiasCalibration(policy.model, ids, gamma, mask)


@pytest.mark.parametrize("gamma", [0.0, 0.8])
@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_generate_gives_the_engines_tokens(family: str, gamma: float) -> None:
    policy = tiny_policy(family)
    prompts = prompts_of(policy)[:2]
    expected = [list(rollout.token_ids) for [rollout] in generated(policy, gamma, GREEDY)[:2]]
    assert hugging_face(policy, prompts, text_only_batch(policy, prompts, gamma), do_sample=False) == expected


def test_transformers_generate_samples_several_answers_a_prompt() -> None:
    policy = tiny_policy("qwen2_5_vl")
    prompts = prompts_of(policy)[:2]
    torch.manual_seed(0)
    answers = hugging_face(
        policy, prompts, text_only_batch(policy, prompts, 0.8), do_sample=True, temperature=1e-4, num_return_sequences=2
    )
    greedy = [list(rollout.token_ids) for [rollout] in generated(policy, 0.8, GREEDY)[:2]]
    assert answers == [greedy[0], greedy[0], greedy[1], greedy[1]], "so cold that every draw is the greedy one"


def test_what_calibration_cannot_follow_is_refused() -> None:
    policy = tiny_policy("qwen2_5_vl")
    prompts = prompts_of(policy)[:2]
    used = text_only_batch(policy, prompts, 0.8)
    hugging_face(policy, prompts, used, do_sample=False)
    with pytest.raises(UserError, match="make a new one for every call"):
        hugging_face(policy, prompts, used, do_sample=False)
    with pytest.raises(UserError, match="without beam search"):
        hugging_face(policy, prompts[:1], text_only_batch(policy, prompts[:1], 0.8), do_sample=False, num_beams=3)
    with pytest.raises(UserError, match="2 answers cannot be shared among 3 text-only prompts"):
        hugging_face(policy, prompts, text_only_batch(policy, [*prompts, prompts[0]], 0.8), do_sample=False)
    with pytest.raises(UserError, match="pad them on the left"):
        TextBiasCalibration(policy.model, torch.ones(1, 2, dtype=torch.int64), 0.8, torch.tensor([[1, 0]]))


@pytest.mark.parametrize("gamma", [-0.1, math.nan, INF])
def test_a_gamma_that_means_nothing_is_refused(gamma: float) -> None:
    policy = tiny_policy("qwen2_5_vl")
    with pytest.raises(UserError, match="gamma of at least 0"):
        CalibratedEngine(policy.model, policy.processor, gamma=gamma)


def test_answers_end_in_step() -> None:
    """The text-only row of an answer that ended leaves with it: the last answers still follow the formula."""
    policy = tiny_policy("qwen2_5_vl")
    prompt = prompts_of(policy)[0]
    stops = dataclasses.replace(policy.processor, stop_ids=tuple(range(0, 256, 9)))
    engine = CalibratedEngine(policy.model, stops, gamma=0.8)
    [group] = engine.generate([GenerationJob(prompt, tuple(range(12)))], Sampling(max_tokens=40))
    lengths = [len(rollout.token_ids) for rollout in group]
    assert len(set(lengths)) > 3
    longest = group[lengths.index(max(lengths))]
    logits = banned(policy, formula(policy, prompt, longest.token_ids, 0.8))
    expected = logits.log_softmax(dim=-1).gather(1, torch.tensor(longest.token_ids)[:, None])[:, 0]
    torch.testing.assert_close(torch.tensor(longest.logprobs).double(), expected, rtol=0, atol=5e-5)
