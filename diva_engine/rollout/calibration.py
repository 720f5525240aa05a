"""Text-bias calibration (Hint-GRPO): at test time, push the answer towards what the image says.

    logits' = l_image + gamma * (l_image - l_text)

l_text comes from the same prompt without its images, followed by the same answer tokens. gamma 0 is plain decoding.
"""

from __future__ import annotations

import math
import re
from dataclasses import replace

import torch
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedModel
from transformers.cache_utils import DynamicCache

from diva_engine.records import Processor, Prompt, UserError


def calibrate(image_logits: Tensor, text_logits: Tensor, gamma: float) -> Tensor:
    """Both [N, V] -> [N, V] float32. A token that either side bans (-inf) stays banned."""
    image_logits, text_logits = image_logits.float(), text_logits.float()
    banned = torch.isneginf(image_logits) | torch.isneginf(text_logits)
    calibrated = image_logits + gamma * (image_logits - text_logits)
    return calibrated.masked_fill_(banned, float("-inf"))  # instead of the NaN of inf - inf


def check_gamma(gamma: float) -> float:
    """Raises UserError unless gamma is a finite number of at least 0."""
    if not (math.isfinite(gamma) and gamma >= 0):
        raise UserError(f"text-bias calibration needs a gamma of at least 0 (0.8 in the paper), not {gamma}")
    return gamma


def without_images(prompt: Prompt, processor: Processor) -> Prompt:
    """The same prompt, its images and their placeholders taken out; one without images comes back as it is."""
    if prompt.pixel_values is None:
        return prompt
    text = _image_placeholder(processor).sub("", prompt.text)
    token_ids = tuple(processor.tokenizer(text, add_special_tokens=False)["input_ids"])
    return replace(
        prompt,
        token_ids=token_ids,
        position_ids=torch.arange(len(token_ids)).expand(3, -1),
        pixel_values=None,
        image_grid_thw=None,
        images=(),
        text=text,
    )


def _image_placeholder(processor: Processor) -> re.Pattern[str]:
    """What one image looks like in a rendered chat: its placeholder, between the tokens that open and close it."""
    token = re.escape(processor.tokenizer.convert_ids_to_tokens(processor.image_token_id))
    return re.compile(rf"(?:<\|vision_start\|>)?{token}(?:<\|vision_end\|>)?")


class TextBiasCalibration(LogitsProcessor):
    """Text-bias calibration inside transformers' own `model.generate`, greedy or sampled.

        plain = processor(text=[chat], images=[image], return_tensors="pt")
        blind = processor(text=[chat_without_image], return_tensors="pt")
        calibration = TextBiasCalibration(model, blind["input_ids"], gamma=0.8)
        model.generate(**plain, logits_processor=[calibration])

    It reads the text-only prompts itself, into a cache of its own, and follows the tokens that `generate` draws. One
    object serves one call of `generate`; with num_return_sequences=k, every prompt's k answers share its row.

    Args:
        model: the model that generates.
        text_only_ids: [B, L] int64, the prompts without their images, padded on the left.
        gamma: strength; 0 leaves the logits as they are.
        attention_mask: [B, L], 0 at padding; none is padded unless given.
    """

    def __init__(
        self, model: PreTrainedModel, text_only_ids: Tensor, gamma: float = 0.8, attention_mask: Tensor | None = None
    ) -> None:
        self.gamma = check_gamma(gamma)
        self._text_model = getattr(model.model, "language_model", model.model)
        self._head = model.lm_head
        self._prompt_ids = text_only_ids.to(model.device)
        mask = torch.ones_like(self._prompt_ids) if attention_mask is None else attention_mask.to(model.device)
        if not mask[:, -1].all():
            raise UserError("the text-only prompts are padded on the right; pad them on the left")
        self._mask = mask
        self._cache = DynamicCache(config=model.config.get_text_config())
        self._seen: Tensor | None = None  # `input_ids` of the call before

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """input_ids [N, length], scores [N, V] as generate hands them over -> calibrated scores."""
        if self.gamma == 0:
            return scores
        text_logits = self._begin(input_ids) if self._seen is None else self._follow(input_ids, self._seen)
        self._seen = input_ids
        return calibrate(scores, text_logits, self.gamma)

    def _begin(self, input_ids: Tensor) -> Tensor:
        num_prompts, num_answers = len(self._prompt_ids), len(input_ids)
        if num_answers % num_prompts:
            raise UserError(f"{num_answers} answers cannot be shared among {num_prompts} text-only prompts")
        repeats = num_answers // num_prompts
        self._mask = self._mask.repeat_interleave(repeats, dim=0)
        return self._read(self._prompt_ids.repeat_interleave(repeats, dim=0))

    def _follow(self, input_ids: Tensor, seen: Tensor) -> Tensor:
        if input_ids.shape[1] != seen.shape[1] + 1 or not torch.equal(input_ids[:, :-1], seen):
            raise UserError(
                "TextBiasCalibration follows one call of generate, token by token: make a new one for every call, and "
                "decode without beam search or assistant model"
            )
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(self._mask), 1)], dim=1)
        return self._read(input_ids[:, -1:])

    @torch.no_grad()
    def _read(self, tokens: Tensor) -> Tensor:
        """tokens [N, new] -> logits [N, V] after the last of them."""
        # The text model alone: the whole model would take these positions for those of the prompts with images.
        positions = (self._mask.cumsum(dim=1) - 1).clamp(min=0)[:, -tokens.shape[1] :]
        output = self._text_model(
            input_ids=tokens,
            attention_mask=self._mask,
            position_ids=positions,
            past_key_values=self._cache,
            use_cache=True,
        )
        return self._head(output.last_hidden_state[:, -1])
