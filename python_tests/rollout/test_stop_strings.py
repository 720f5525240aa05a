"""An answer ends with the token that completes a stop string, by every engine, and is else what it would have been."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from diva_engine.policy.model import Policy, load_policy
from diva_engine.records import GenerationJob, Rollout, RolloutEngine, Sampling
from diva_engine.rollout.calibrated_engine import CalibratedEngine
from diva_engine.rollout.stop_strings import StopStrings
from python_tests.models import build_tiny_model, build_tiny_tokenizer
from python_tests.prompts import make_prompt, random_image
from python_tests.rollout.engines import ENGINES, open_engine

LONG_TOKENS = ["(0;end)", "(1;end)", "mid"]
CASES = {
    "inside a token": ("end",),
    "across tokens": ("ab",),
    "across tokens of several letters": (";end)m",),
    "a letter of two tokens": ("é",),
    "two strings": ("cab", "id"),
    "one the beginning of another": ("abc", "ab"),
    "never": ("abcabcabcabc",),
}
SAMPLING = Sampling(temperature=2, max_tokens=30)
# Some of the strings whole, and the first letter of others at its end.
PREFIX = "ab;end)mid cab a"


@functools.cache
def wordy_policy() -> Policy:
    """It draws a, b, c, the two bytes of é, LONG_TOKENS and the end token, nothing else, and each of them often."""
    folder = build_tiny_model("qwen2_5_vl", tempfile.mkdtemp(), hidden_size=128, vocab_size=280)
    tokenizer = build_tiny_tokenizer()
    tokenizer.add_tokens(LONG_TOKENS)
    tokenizer.save_pretrained(folder)
    policy = load_policy(folder)
    with torch.no_grad():
        policy.model.model.language_model.norm.weight.mul_(0.2)
    stop_ids = policy.processor.stop_ids[:1]
    allowed = {*tokenizer.encode("abcé"), *tokenizer.convert_tokens_to_ids(LONG_TOKENS), *stop_ids}
    banned = tuple(token for token in range(280) if token not in allowed)
    return replace(policy, processor=replace(policy.processor, banned_ids=banned, stop_ids=stop_ids))


@functools.cache
def engine_of(kind: str) -> RolloutEngine:
    policy = wordy_policy()
    if kind == "calibrated":
        return CalibratedEngine(policy.model, policy.processor, gamma=0.5)
    return open_engine(kind, policy)


@functools.cache
def answers_of(kind: str, stop: tuple[str, ...], max_tokens: int = SAMPLING.max_tokens) -> list[Rollout]:
    policy = wordy_policy()
    prompt = make_prompt(policy.model, policy.processor, "say", [random_image(56, 56)], prefix=PREFIX)
    sampling = replace(SAMPLING, stop=stop, max_tokens=max_tokens)
    [rollouts] = engine_of(kind).generate([GenerationJob(prompt, tuple(range(150)))], sampling)
    return rollouts


def cut_at(stop: Sequence[str], token_ids: Sequence[int]) -> tuple[int, ...] | None:
    """The tokens up to the first that completes a string, by decoding every beginning of the answer."""
    tokenizer = wordy_policy().processor.tokenizer
    for end in range(1, len(token_ids) + 1):
        text = tokenizer.decode(token_ids[:end], skip_special_tokens=True)
        if any(string in text for string in stop):
            return tuple(token_ids[:end])
    return None


@pytest.mark.parametrize("kind", [*ENGINES, "calibrated"])
@pytest.mark.parametrize("stop", CASES.values(), ids=CASES)
def test_an_answer_ends_with_the_token_that_completes_a_string(kind: str, stop: tuple[str, ...]) -> None:
    whole, ended = answers_of(kind, ()), answers_of(kind, stop)
    cuts = [cut_at(stop, rollout.token_ids) for rollout in whole]
    assert any(cut is None for cut in cuts)
    assert sum(cut is not None for cut in cuts) > 3 or stop == CASES["never"]
    for before, cut, after in zip(whole, cuts, ended, strict=True):
        assert after.token_ids == (cut or before.token_ids)
        assert after.logprobs == pytest.approx(before.logprobs[: len(after.token_ids)], abs=1e-5)
        assert after.finish_reason == ("stop" if cut else before.finish_reason)
        assert after.text.startswith(PREFIX)
        assert not cut or any(string in after.text[len(PREFIX) :] for string in stop), "the text has the string"


@pytest.mark.parametrize("kind", ENGINES)
def test_a_string_that_the_last_possible_token_completes_ends_the_answer(kind: str) -> None:
    stop = ("ab",)
    ended = [rollout for rollout in answers_of(kind, stop) if cut_at(stop, rollout.token_ids)]
    length = min(len(rollout.token_ids) for rollout in ended)
    shorter = answers_of(kind, stop, max_tokens=length)
    assert {rollout.finish_reason for rollout in shorter if len(rollout.token_ids) == length} == {"stop", "length"}
    for rollout in shorter:
        assert rollout.finish_reason == "stop" or not cut_at(stop, rollout.token_ids)
        assert rollout.finish_reason == "length" or len(rollout.token_ids) <= length


def test_a_forced_beginning_is_not_the_answer() -> None:
    """Some answers go on with the letter that the forced beginning's last one waits for."""
    letter = wordy_policy().processor.tokenizer.encode("b")[0]
    begun = [rollout for rollout in answers_of("native", ("ab",)) if rollout.token_ids[0] == letter]
    assert begun
    assert all(len(rollout.token_ids) > 1 for rollout in begun)


def test_special_tokens_have_no_text() -> None:
    tokenizer = build_tiny_tokenizer()
    stop = StopStrings(["ab", "im_end"], tokenizer)
    a, b, end = [*tokenizer.encode("ab"), tokenizer.convert_tokens_to_ids("<|im_end|>")]
    assert stop.end_with([a, b])
    assert stop.end_with([a, end, end, end, b])
    assert not stop.end_with([a, end])
    assert not StopStrings([], tokenizer).end_with([a, b])
