"""Supervised steps that bring a random model to where reinforcement learning can take over."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedTokenizerFast, Qwen2_5_VLForConditionalGeneration, Qwen2VLImageProcessorPil

from diva_engine.demo.lessons import Lesson
from diva_engine.demo.model import IMAGE_PROCESSOR
from diva_engine.demo.questions import Shown

NO_LABEL = -100  # what cross_entropy ignores
BINDING_SCALE = 10.0  # sharpens the products of image features and word embeddings


class Lessons(Protocol):
    """Where lessons come from: `Mixture`, or those of another family of questions."""

    def draw(self, rng: random.Random) -> Lesson: ...


@dataclass(frozen=True)
class WarmUp:
    """How the model is taught; the learning rate rises over 50 steps and falls as a cosine."""

    mixture: Lessons
    steps: int
    learning_rate: float = 1e-3
    batch_size: int = 16  # more steps of fewer lessons teach more in the same time
    seed: int = 0


@dataclass(frozen=True)
class Batch:
    """B lessons as tensors, padded on the right to S tokens."""

    input_ids: Tensor  # [B, S] int64
    attention_mask: Tensor  # [B, S] int64
    labels: Tensor  # [B, S] int64: the next token where it belongs to the answer, else NO_LABEL
    pixel_values: Tensor | None  # [P, 1176] float32; None where no lesson has an image
    image_grid_thw: Tensor | None  # [I, 3] int64, I lessons with an image
    shown: Tensor  # [M, 2] int64: ids of the colour and of the number that each image token shows, or NO_LABEL


class Collator:
    """Turns lessons into tensors, in the layout in which the trainer will pose questions."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._tokenizer = tokenizer
        # By hand rather than from a folder: the backend that needs no torchvision, so that weights never depend on it.
        self._image_processor = Qwen2VLImageProcessorPil.from_dict(IMAGE_PROCESSOR)
        self.frame = self._render([{"type": "image"}, {"type": "text", "text": "QUESTION"}])
        self._frame_of_text = self._render([{"type": "text", "text": "QUESTION"}])

    def __call__(self, lessons: Sequence[Lesson]) -> Batch:
        images = [lesson.image for lesson in lessons if lesson.image is not None]
        pixels = self._image_processor(images=images, return_tensors="pt") if images else {}
        prompts = self._tokenizer([self._prompt(lesson) for lesson in lessons])["input_ids"]
        answers = self._tokenizer([lesson.answer + "<|im_end|>" for lesson in lessons])["input_ids"]
        size = max(len(prompt) + len(answer) for prompt, answer in zip(prompts, answers, strict=True))
        input_ids = torch.full((len(lessons), size), self._tokenizer.pad_token_id)
        attention_mask = torch.zeros_like(input_ids)
        labels = torch.full_like(input_ids, NO_LABEL)
        for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
            end = len(prompt) + len(answer)
            input_ids[row, :end] = torch.tensor(prompt + answer)
            attention_mask[row, :end] = 1
            labels[row, len(prompt) - 1 : end - 1] = torch.tensor(answer)
        pairs = [pair for lesson in lessons for pair in self._shown_ids(lesson.shown)]
        shown = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2)
        grid = pixels.get("image_grid_thw")
        return Batch(input_ids, attention_mask, labels, pixels.get("pixel_values"), grid, shown)

    def _render(self, content: list[dict[str, str]]) -> str:
        messages = [{"role": "user", "content": content}]
        return str(self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))

    def _prompt(self, lesson: Lesson) -> str:
        frame = self.frame if lesson.image is not None else self._frame_of_text
        text = frame.replace("QUESTION", lesson.question.replace("<image>", ""))
        return text.replace("<|image_pad|>", "<|image_pad|>" * len(lesson.shown)) + lesson.begun

    def _shown_ids(self, shown: Shown) -> list[list[int]]:
        to_id = self._tokenizer.convert_tokens_to_ids
        return [[NO_LABEL if word is None else to_id(word) for word in pair] for pair in shown]


def lesson_loss(model: Qwen2_5_VLForConditionalGeneration, batch: Batch) -> tuple[Tensor, Tensor]:
    """Cross-entropy of the answers, and the binding loss that ties image tokens to the words for what they show.

    Without the second term the model learns the form of an answer but, after several times the steps, still no tile.
    """
    inner = model.model
    is_image = batch.input_ids == model.config.image_token_id
    embeddings = model.get_input_embeddings()(batch.input_ids)
    features = embeddings.new_zeros(0, embeddings.shape[-1])
    if batch.pixel_values is not None:
        features = torch.cat(list(inner.get_image_features(batch.pixel_values, batch.image_grid_thw).pooler_output))
        embeddings = embeddings.masked_scatter(is_image[..., None], features)
    position_ids, _ = inner.get_rope_index(
        batch.input_ids,
        mm_token_type_ids=is_image.int(),
        image_grid_thw=batch.image_grid_thw,
        attention_mask=batch.attention_mask,
    )
    hidden = inner.language_model(
        inputs_embeds=embeddings, attention_mask=batch.attention_mask, position_ids=position_ids, use_cache=False
    ).last_hidden_state
    answered = batch.labels != NO_LABEL
    answer_loss = functional.cross_entropy(model.lm_head(hidden[answered]), batch.labels[answered])
    return answer_loss, _binding_loss(model, features, batch.shown)


def _binding_loss(
    model: Qwen2_5_VLForConditionalGeneration,
    features: Tensor,  # [M, hidden], M image tokens
    shown: Tensor,  # [M, 2]
) -> Tensor:
    """Each image token must point at its own colour among the colours and at its own number among the numbers."""
    embedding = model.get_input_embeddings().weight
    loss = features.new_zeros(())
    for words in shown.unbind(1):
        labelled = words != NO_LABEL
        if labelled.any():
            candidates, target = words[labelled].unique(return_inverse=True)
            products = BINDING_SCALE * features[labelled] @ embedding[candidates].T
            loss = loss + functional.cross_entropy(products, target)
    return loss


def warm_up(
    model: Qwen2_5_VLForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    plan: WarmUp,
    report: Callable[[int, float], None],
) -> None:
    """Teach the model in place. `report(step, answer_loss)` is called after every step."""
    rng = random.Random(f"warm-up {plan.seed}")
    collate = Collator(tokenizer)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=0.01)
    for step in range(plan.steps):
        for group in optimizer.param_groups:
            group["lr"] = _learning_rate(plan, step)
        batch = collate([plan.mixture.draw(rng) for _ in range(plan.batch_size)])
        answer_loss, binding_loss = lesson_loss(model, batch)
        optimizer.zero_grad()
        (answer_loss + binding_loss).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        report(step + 1, answer_loss.item())


def _learning_rate(plan: WarmUp, step: int) -> float:
    rise = min(1.0, (step + 1) / 50)
    fall = 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / plan.steps))
    return plan.learning_rate * rise * fall
