"""Prompts encoded ahead of need: one background thread decodes, perturbs and processes the pictures of the next step
while this one generates and learns."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Protocol

import torch

from diva_engine.records import Prompt, Variant

MIB = 2**20


class Encoder(Protocol):
    """A pure function from a variant and the key of its noise to a prompt, on any thread."""

    def encode(self, variant: Variant, key: int) -> Prompt: ...


@dataclass(frozen=True)
class _Ahead:
    """A prompt under way. None as its result: the memory was full, so it was left undone."""

    step: int
    variant: Variant
    prompt: Future[Prompt | None]


class PromptPrefetcher:
    """An encoder whose prompts may have been made beforehand.

    `prefetch` says what will probably be asked; `encode` returns a prompt made ahead only where it was made for the
    very same variant and key, and makes any other on the spot. Guessing wrong therefore costs time and changes nothing.

    Args:
        encoder: who encodes.
        max_bytes: pixels held ahead of need; what would exceed them is left to `encode`.
    """

    def __init__(self, encoder: Encoder, max_bytes: int) -> None:
        self._encoder = encoder
        self._max_bytes = max_bytes
        self._ahead: dict[object, _Ahead] = {}
        self._num_bytes = 0
        self._counting = threading.Lock()
        self._num_asked = self._num_taken = 0
        self._worker = ThreadPoolExecutor(1, "prompts")
        threads = torch.get_num_threads()
        self._worker.submit(_use_one_thread).result()
        torch.set_num_threads(threads)  # else threads that start later have one, too

    def encode(self, variant: Variant, key: int) -> Prompt:
        """As the encoder's own `encode`, exceptions included."""
        self._num_asked += 1
        ahead = self._ahead.get(_posing(variant, key))
        if ahead is None or ahead.variant.problem != variant.problem:
            return self._encoder.encode(variant, key)
        del self._ahead[_posing(variant, key)]
        if ahead.prompt.cancel():  # not begun: two threads are faster than one
            return self._encoder.encode(variant, key)
        prompt = ahead.prompt.result()
        if prompt is None:
            return self._encoder.encode(variant, key)
        self._count(-_num_bytes(prompt))
        self._num_taken += 1
        return prompt

    def prefetch(self, wanted: Sequence[tuple[Variant, int]], step: int) -> None:
        """Begins with what `step` will probably ask, as pairs of variant and key.

        What was prefetched for the step before stays, for it may just be running; anything older is dropped.
        """
        for posing, ahead in list(self._ahead.items()):
            if ahead.step < step - 1:
                self._drop(posing, ahead)
        for variant, key in wanted:
            posing = _posing(variant, key)
            if posing not in self._ahead:
                self._ahead[posing] = _Ahead(step, variant, self._worker.submit(self._encode_ahead, variant, key))

    def take_share(self) -> float:
        """Of the prompts asked for since the last call, the share that was ready or under way."""
        share = self._num_taken / max(1, self._num_asked)
        self._num_asked = self._num_taken = 0
        return share

    def wait(self) -> None:
        """Until all that was asked for is made, or left for lack of memory."""
        wait([ahead.prompt for ahead in self._ahead.values()])

    def close(self) -> None:
        """Ends the thread; what it has not begun is left undone."""
        self._worker.shutdown(cancel_futures=True)
        self._ahead.clear()

    def _encode_ahead(self, variant: Variant, key: int) -> Prompt | None:
        if self._num_bytes >= self._max_bytes:
            return None
        prompt = self._encoder.encode(variant, key)
        self._count(_num_bytes(prompt))
        return prompt

    def _drop(self, posing: object, ahead: _Ahead) -> None:
        del self._ahead[posing]
        if not ahead.prompt.cancel() and ahead.prompt.exception() is None and (prompt := ahead.prompt.result()):
            self._count(-_num_bytes(prompt))

    def _count(self, num_bytes: int) -> None:
        with self._counting:
            self._num_bytes += num_bytes


def _posing(variant: Variant, key: int) -> object:
    """What the encoder reads of a variant, but for its problem's own content; the key only where it is used."""
    is_drawn = bool(variant.operations) or variant.kind == "text_in_image"
    return (
        variant.problem.id,
        variant.problem.origin,
        variant.kind,
        variant.text,
        variant.operations,
        variant.answer_prefix,
        key if is_drawn else None,
    )


def _num_bytes(prompt: Prompt) -> int:
    pixels = 0 if prompt.pixel_values is None else prompt.pixel_values.nbytes
    return pixels + sum(image.width * image.height * len(image.getbands()) for image in prompt.images)


def _use_one_thread() -> None:
    """A team of threads of its own would take the cores from those of the step."""
    torch.get_num_threads()  # a thread's first look sets the process's number
    torch.set_num_threads(1)
