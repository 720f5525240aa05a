"""Prompts made ahead are those that would have been made on the spot, and a wrong guess costs nothing but time."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field, replace

import pytest
import torch

from diva_engine.data.prefetch import MIB, PromptPrefetcher
from diva_engine.data.prompts import PromptEncoder
from diva_engine.records import ImageOperation, UserError, Variant
from python_tests.data.pictures import original, problem_of, random_png, tiny_processor

NOISY = (ImageOperation("rotate", 20.0), ImageOperation("gaussian", 0.3))


@dataclass
class Counting:
    """The real encoder; counts its calls and can be held up."""

    encoder: PromptEncoder = field(default_factory=lambda: PromptEncoder(tiny_processor()))
    calls: list[tuple[str, str]] = field(default_factory=list)  # problem id, thread
    gate: threading.Event = field(default_factory=threading.Event)

    def encode(self, variant, key):
        name = threading.current_thread().name
        if name.startswith("prompts"):
            self.gate.wait(10)
        self.calls.append((variant.problem.id, name.split("_")[0]))
        return self.encoder.encode(variant, key)


@pytest.fixture
def open_gate():
    counting = Counting()
    counting.gate.set()
    prefetcher = PromptPrefetcher(counting, 64 * MIB)
    yield counting, prefetcher
    counting.gate.set()
    prefetcher.close()


def question(name: str, **changes) -> Variant:
    problem = problem_of("<image>what is it?", random_png(56, 56, seed=len(name)), id=name)
    return replace(original(problem), **changes)


VARIANTS = {
    "original": question("a"),
    "perturbed": question("a", index=1, kind="perturbation", operations=NOISY),
    "drawn": question("a", index=1, kind="text_in_image", text="<image>see the picture"),
    "begun": question("a", index=1, kind="hint", answer_prefix="<think>\n"),
}


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_a_prompt_made_ahead_has_the_same_bytes(variant, open_gate):
    counting, prefetcher = open_gate
    prefetcher.prefetch([(variant, 7)], step=1)
    prefetcher.wait()
    ahead, plain = prefetcher.encode(variant, 7), PromptEncoder(tiny_processor()).encode(variant, 7)
    assert torch.equal(ahead.pixel_values, plain.pixel_values)
    assert torch.equal(ahead.position_ids, plain.position_ids)
    assert (ahead.token_ids, ahead.prefix_ids, ahead.text) == (plain.token_ids, plain.prefix_ids, plain.text)
    assert [image.tobytes() for image in ahead.images] == [image.tobytes() for image in plain.images]
    assert counting.calls == [("a", "prompts")], "made once, in the background"
    assert prefetcher.take_share() == 1.0
    assert prefetcher._num_bytes == 0


MISSES = {
    "another question": (question("b"), 7),
    "another key of its noise": (VARIANTS["perturbed"], 8),
    "other operations": (replace(VARIANTS["perturbed"], operations=NOISY[:1]), 7),
    "another wording": (replace(VARIANTS["perturbed"], text="<image>and this?"), 7),
    "another row of the same id": (question("a", problem=problem_of("<image>?", random_png(), id="a")), 7),
}


@pytest.mark.parametrize(("variant", "key"), MISSES.values(), ids=MISSES)
def test_only_the_very_same_variant_is_taken(variant, key, open_gate):
    counting, prefetcher = open_gate
    prefetcher.prefetch([(VARIANTS["perturbed"], 7), (VARIANTS["original"], 7)], step=1)
    prefetcher.wait()
    found = prefetcher.encode(variant, key)
    assert torch.equal(found.pixel_values, PromptEncoder(tiny_processor()).encode(variant, key).pixel_values)
    assert counting.calls[-1] == (variant.problem.id, "MainThread")
    assert prefetcher.take_share() == 0.0


def test_an_originals_key_does_not_matter(open_gate):
    counting, prefetcher = open_gate
    prefetcher.prefetch([(VARIANTS["original"], 7)], step=1)
    prefetcher.encode(replace(VARIANTS["original"], difficulty=8.0), 99)
    assert len(counting.calls) == 1


def test_what_has_not_begun_is_made_on_the_spot():
    counting = Counting()
    prefetcher = PromptPrefetcher(counting, 64 * MIB)
    prefetcher.prefetch([(question("a"), 1), (question("bb"), 1)], step=1)
    prefetcher.encode(question("bb"), 1)
    assert counting.calls == [("bb", "MainThread")]
    counting.gate.set()
    prefetcher.encode(question("a"), 1)
    prefetcher.close()
    assert counting.calls[1][0] == "a"
    assert len(counting.calls) == 2


def test_an_error_reaches_who_asks(open_gate):
    _, prefetcher = open_gate
    broken = original(problem_of("<image>?", b"no image", id="x"))
    prefetcher.prefetch([(broken, 1), (VARIANTS["original"], 1)], step=1)
    with pytest.raises(UserError, match="is no PNG"):
        prefetcher.encode(broken, 1)
    assert prefetcher.encode(VARIANTS["original"], 1).token_ids


def test_what_the_memory_does_not_hold_is_left_and_what_is_old_is_dropped():
    counting = Counting()
    counting.gate.set()
    prefetcher = PromptPrefetcher(counting, max_bytes=1)
    prefetcher.prefetch([(question(name), 1) for name in ("a", "bb", "ccc")], step=1)
    prefetcher.wait()
    assert [name for name, _ in counting.calls] == ["a"], "the first one filled it"
    assert prefetcher.encode(question("bb"), 1).token_ids
    prefetcher.prefetch([], step=2)
    assert prefetcher._num_bytes > 0, "the step before may be running"
    prefetcher.prefetch([], step=3)
    assert (prefetcher._num_bytes, prefetcher._ahead) == (0, {})
    prefetcher.close()


def test_the_step_keeps_its_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        prefetcher = PromptPrefetcher(Counting(), MIB)
        found = []
        later = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
        later.start()
        later.join()
        assert (torch.get_num_threads(), found) == (2, [2])
        assert prefetcher._worker.submit(torch.get_num_threads).result() == 1
        prefetcher.close()
    finally:
        torch.set_num_threads(before)
