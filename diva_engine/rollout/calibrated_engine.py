"""The native engine with text-bias calibration: each answer is decoded twice in step, with its image and without."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from diva_engine.records import Processor, Prompt
from diva_engine.rollout.calibration import calibrate, check_gamma, without_images
from diva_engine.rollout.decoding import Decoding, PlainDecoding
from diva_engine.rollout.native_engine import NativeEngine


class CalibratedEngine(NativeEngine):
    """Samples from softmax(l_image + gamma * (l_image - l_text)); the rollouts' log-probabilities are of that.

    Twice the rows for the same answers: at most `max_batch_rows` rows, text-only ones included, are decoded side by
    side. gamma 0, and prompts without images among themselves, are decoded plainly.
    """

    def __init__(
        self, model: PreTrainedModel, processor: Processor, *, gamma: float, max_batch_rows: int = 512
    ) -> None:
        self.gamma = check_gamma(gamma)
        super().__init__(model, processor, max_batch_rows=max(1, max_batch_rows // 2) if self.gamma else max_batch_rows)

    def _begin(self, prompts: Sequence[Prompt], prompt_rows: Tensor, max_tokens: int) -> Decoding:
        if self.gamma == 0 or all(prompt.pixel_values is None for prompt in prompts):
            return super()._begin(prompts, prompt_rows, max_tokens)
        text_only = [without_images(prompt, self._processor) for prompt in prompts]
        rows = torch.cat([prompt_rows, prompt_rows + len(prompts)])
        both = PlainDecoding(self._model, [*prompts, *text_only], rows, self._pad_id, max_tokens)
        return PairedDecoding(both, self.gamma)


class PairedDecoding:
    """N answers as 2 N rows of one batch: row i reads the prompt with its images, row N + i the one without."""

    def __init__(self, both: Decoding, gamma: float) -> None:
        self._both = both
        self._gamma = gamma
        self._num_answers = len(both.first_logits) // 2
        self.first_logits = self._combined(both.first_logits)

    def step(self, tokens: Tensor) -> Tensor:
        return self._combined(self._both.step(tokens.repeat(2)))

    def keep(self, rows: Tensor) -> None:
        self._both.keep(torch.cat([rows, rows + self._num_answers]))
        self._num_answers = len(rows)

    def _combined(self, logits: Tensor) -> Tensor:
        """logits [2 N, V] -> [N, V]"""
        image_logits, text_logits = logits.chunk(2)
        return calibrate(image_logits, text_logits, self._gamma)
