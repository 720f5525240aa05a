"""Variant -> what the model reads: chat text, token ids with expanded image placeholders, positions, pixels."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from diva_engine.data.chat_text import ChatRenderer
from diva_engine.data.chats import IMAGE_MARKER
from diva_engine.data.image_cache import (
    LruCache,
    ProcessedImage,
    content_key,
    picture_bytes,
    processed_bytes,
)
from diva_engine.data.images import ImageSource, image_size, load_image, resize_to_pixels, size_within
from diva_engine.data.perturb import perturb
from diva_engine.data.positions import mrope_positions, num_image_tokens
from diva_engine.data.text_in_image import SMALLEST_FONT, draw_text_in_image, load_font
from diva_engine.records import Problem, Processor, Prompt, UserError, Variant

CACHE_BYTES = 128 * 2**20


class PromptTooLong(UserError):
    """The prompt has more tokens than `max_prompt_length`."""


class PromptEncoder:
    """Encodes variants for one model. The same variant and key give the same prompt, bit for bit, on any thread.

    Args:
        processor: the model's tokenizer and image processor.
        format_prompt: Jinja file that receives the question as `content`.
        system_prompt: system message before every question.
        min_pixels, max_pixels: area that images are brought into before the image processor's own rule; 0 is no bound.
        max_prompt_length: in tokens, image tokens included; the forced beginning of an answer does not count.
        image_dir: where relative image paths start, and which none may leave; a ProblemSet gives absolute paths.
        font_path: font for text drawn into images; the package's DejaVu Sans unless given.
        cache_bytes: bound of each of the two caches of originals, decoded and processed.
    """

    def __init__(
        self,
        processor: Processor,
        *,
        format_prompt: str | Path | None = None,
        system_prompt: str | None = None,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        max_prompt_length: int = 2048,
        image_dir: str | Path | None = None,
        font_path: str = "",
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        self._processor = processor
        self._chat = ChatRenderer(processor.tokenizer, format_prompt or "", system_prompt or "")
        self._min_pixels = min_pixels or 0
        self._max_pixels = max_pixels or 0
        self._max_prompt_length = max_prompt_length
        self._image_dir = image_dir or None
        load_font(font_path, SMALLEST_FONT)  # a font that is none is refused now, not when the first text is drawn
        self._font_path = font_path
        self._tokenizing = threading.Lock()
        self._decoded: LruCache[str, Image.Image] = LruCache(cache_bytes, picture_bytes)
        self._processed: LruCache[str, ProcessedImage] = LruCache(cache_bytes, processed_bytes)

    def encode(self, variant: Variant, key: int) -> Prompt:
        """The prompt of a variant; `key` draws its perturbations.

        Raises:
            PromptTooLong: more than `max_prompt_length` tokens.
            UserError: an image cannot be used, or markers and images do not match.
        """
        try:
            return self._encode(variant, key)
        except UserError as error:
            raise type(error)(_at(variant.problem, str(error))) from error

    def check(self, problem: Problem) -> None:
        """Raises as `encode` would for the original question, from image headers alone: no pixel is decoded."""
        try:
            self._refuse_mismatch(problem, problem.text)
            sizes = [self._bounded_size(source) for source in problem.images]
            num_tokens = [self._num_tokens_of(size) for size in sizes]
            text = self._chat.render(problem.text, str(problem.extra.get("system_prompt", "")))
            self._refuse_too_long(len(self._expanded_ids(text, num_tokens)))
        except UserError as error:
            raise type(error)(_at(problem, str(error))) from error

    def _encode(self, variant: Variant, key: int) -> Prompt:
        problem = variant.problem
        self._refuse_mismatch(problem, variant.text)
        text = self._chat.render(variant.text, str(problem.extra.get("system_prompt", "")))
        pictures = self._pictures(variant, key)
        grids = [picture.grid for picture in pictures]
        merge_size = self._processor.merge_size
        ids = self._expanded_ids(text, [num_image_tokens(grid, merge_size) for grid in grids])
        self._refuse_too_long(len(ids))
        positions = mrope_positions(ids, self._processor.image_token_id, grids, merge_size)
        return Prompt(
            token_ids=tuple(ids.tolist()),
            position_ids=torch.from_numpy(positions),
            pixel_values=_joined_pixels(pictures),
            image_grid_thw=torch.tensor(grids, dtype=torch.int64) if grids else None,
            images=tuple(picture.image for picture in pictures),
            text=text,
            prefix_ids=tuple(self._token_ids(variant.answer_prefix)) if variant.answer_prefix else (),
        )

    def _pictures(self, variant: Variant, key: int) -> list[ProcessedImage]:
        """The variant's images, perturbed, resized and processed. Originals come from the cache."""
        sources = variant.problem.images
        draws_text = variant.kind == "text_in_image" and bool(sources)
        if not variant.operations and not draws_text:
            return [self._processed_original(source) for source in sources]
        images = [self._original(source) for source in sources]
        try:
            images = perturb(images, variant.operations, key)
        except ValueError as error:
            raise UserError(f"the image cannot be perturbed ({error})") from error
        if draws_text:
            # After the perturbation: the picture gets harder to see, the question stays readable.
            side: Literal["top", "bottom"] = "bottom" if key % 2 else "top"
            question = variant.problem.text.replace(IMAGE_MARKER, " ").strip()
            images[0] = draw_text_in_image(images[0], question, side=side, font_path=self._font_path)
        return [self._process(self._bounded(image)) for image in images]

    def _original(self, source: ImageSource) -> Image.Image:
        load = lambda: self._bounded(load_image(source, self._image_dir))  # noqa: E731
        return self._decoded.get(content_key(source), load)

    def _processed_original(self, source: ImageSource) -> ProcessedImage:
        return self._processed.get(content_key(source), lambda: self._process(self._original(source)))

    def _process(self, image: Image.Image) -> ProcessedImage:
        process = _required(self._processor.image_processor)
        try:
            features = process(images=[image], return_tensors="pt")
        except ValueError as error:
            raise UserError(f"the image processor refuses {image.width} x {image.height} pixels ({error})") from error
        frames, rows, columns = features["image_grid_thw"][0].tolist()
        return ProcessedImage(image, features["pixel_values"].float(), (frames, rows, columns))

    def _bounded(self, image: Image.Image) -> Image.Image:
        return resize_to_pixels(image, self._min_pixels, self._max_pixels)

    def _bounded_size(self, source: ImageSource) -> tuple[int, int]:
        return size_within(image_size(source, self._image_dir), self._min_pixels, self._max_pixels)

    def _num_tokens_of(self, size: tuple[int, int]) -> int:
        width, height = size
        processor = _required(self._processor.image_processor)
        try:
            num_patches = processor.get_number_of_image_patches(height, width, {})
        except ValueError as error:
            raise UserError(f"the image processor refuses {width} x {height} pixels ({error})") from error
        return int(num_patches) // self._processor.merge_size**2

    def _expanded_ids(self, text: str, num_tokens: Sequence[int]) -> npt.NDArray[np.int64]:
        """Token ids [L] of the rendered chat, each image's one placeholder repeated to its number of tokens."""
        ids = np.asarray(self._token_ids(text), dtype=np.int64)
        repeats = np.ones(len(ids), dtype=np.int64)
        if self._processor.image_token_id is not None:
            places = np.flatnonzero(ids == self._processor.image_token_id)
            if len(places) != len(num_tokens):
                raise UserError(
                    f"the rendered prompt has {len(places)} image placeholders for {len(num_tokens)} images; "
                    "take the placeholder token out of the question or the templates"
                )
            repeats[places] = num_tokens
        return np.repeat(ids, repeats)

    def _token_ids(self, text: str) -> list[int]:
        with self._tokenizing:  # a fast tokenizer that two threads reach at once can raise "Already borrowed"
            return list(self._processor.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _refuse_mismatch(self, problem: Problem, text: str) -> None:
        markers = text.count(IMAGE_MARKER)
        if markers != len(problem.images):
            raise UserError(f"the question has {markers} {IMAGE_MARKER} markers and {len(problem.images)} images")
        if problem.images:
            _required(self._processor.image_processor)

    def _refuse_too_long(self, length: int) -> None:
        if length > self._max_prompt_length:
            raise PromptTooLong(
                f"the prompt has {length} tokens, more than data.max_prompt_length={self._max_prompt_length}; "
                "raise it, or lower data.max_pixels"
            )


def _required(image_processor: Any | None) -> Any:
    if image_processor is None:
        raise UserError("the row has images, but the model reads text only")
    return image_processor


def _joined_pixels(pictures: Sequence[ProcessedImage]) -> torch.Tensor | None:
    if not pictures:
        return None
    if len(pictures) == 1:
        return pictures[0].pixel_values
    return torch.cat([picture.pixel_values for picture in pictures])


def _at(problem: Problem, message: str) -> str:
    return f"{problem.origin or problem.id}: {message}"
