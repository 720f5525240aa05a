"""The native rollout engine: batched sampling on the policy's own weights, without a further dependency.

jobs -> chunks of at most `max_batch_rows` answers -> prompts prefilled once each (transformers' forward, pictures
included) -> decoding steps, all answers to a prompt reading its keys together; answers that end leave the batch
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedModel

from diva_engine.records import FinishReason, GenerationJob, Processor, Prompt, Rollout, Sampling, UserError
from diva_engine.rollout.decoder import SUPPORTED_MODEL_TYPES
from diva_engine.rollout.decoding import Decoding, PlainDecoding
from diva_engine.rollout.sampling import sample_tokens, uniform_table

# Answers that ended are cut out of the batch when they make up this share of it: cutting copies the cache.
_ENDED_SHARE = 0.125


@dataclass
class _Answer:
    """One answer being decoded."""

    job: int  # its job's number
    prompt: Prompt
    seed: int
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish_reason: FinishReason = "length"


class NativeEngine:
    """Samples answers with the weights of `model` as they are at each call of `generate`.

    Every answer draws from a stream of its own, made of its seed: it does not depend on the other answers of the batch,
    beyond the last bits of the matrix products.
    """

    def __init__(self, model: PreTrainedModel, processor: Processor, *, max_batch_rows: int = 512) -> None:
        if model.config.model_type not in SUPPORTED_MODEL_TYPES:
            raise UserError(
                f"rollout.engine=native does not know the decoder of model type {model.config.model_type!r} "
                f"(it knows {', '.join(SUPPORTED_MODEL_TYPES)}); take a model of one of these"
            )
        self.policy_version = 0
        self._model = model
        self._processor = processor
        self._max_batch_rows = max_batch_rows
        self._banned_ids = torch.tensor(processor.banned_ids, dtype=torch.int64, device=model.device)

    def update_weights(self, policy_version: int) -> None:
        """Rollouts from now on carry this version; the weights themselves are the policy's own."""
        self.policy_version = policy_version

    def generate(self, jobs: Sequence[GenerationJob], sampling: Sampling) -> list[list[Rollout]]:
        """One rollout a seed, in the order of the jobs and of their seeds."""
        answers = [_Answer(number, job.prompt, seed) for number, job in enumerate(jobs) for seed in job.seeds]
        with _inference(self._model):
            for start in range(0, len(answers), self._max_batch_rows):
                self._answer_chunk(answers[start : start + self._max_batch_rows], sampling)
        rollouts: list[list[Rollout]] = [[] for _ in jobs]
        for answer in answers:
            rollouts[answer.job].append(self._rollout(answer))
        return rollouts

    def _answer_chunk(self, answers: list[_Answer], sampling: Sampling) -> None:
        """Decode `answers` side by side, until each has ended or has `sampling.max_tokens` tokens."""
        numbers = list(dict.fromkeys(answer.job for answer in answers))
        prompts = {answer.job: answer.prompt for answer in answers}
        device = self._model.device
        prompt_rows = torch.tensor([numbers.index(answer.job) for answer in answers], device=device)
        decoding = self._begin([prompts[number] for number in numbers], prompt_rows, sampling.max_tokens)
        uniforms = uniform_table([answer.seed for answer in answers], sampling.max_tokens).to(device)
        logits = decoding.first_logits
        for step in range(sampling.max_tokens):
            tokens, logprobs = sample_tokens(self._mask_banned(logits), uniforms[:, step], sampling)
            open_rows = self._record(answers, tokens.tolist(), logprobs.tolist())
            if not open_rows or step + 1 == sampling.max_tokens:
                return
            if len(open_rows) <= (1 - _ENDED_SHARE) * len(answers):
                rows = torch.tensor(open_rows, device=device)
                answers = [answers[row] for row in open_rows]
                tokens, uniforms = tokens[rows], uniforms[rows]
                decoding.keep(rows)
            logits = decoding.step(tokens)

    def _begin(self, prompts: Sequence[Prompt], prompt_rows: Tensor, max_tokens: int) -> Decoding:
        """Read the prompts of a chunk; row i answers prompt `prompt_rows[i]` ([N] int64, ascending)."""
        return PlainDecoding(self._model, prompts, prompt_rows, self._pad_id, max_tokens)

    def _record(self, answers: list[_Answer], tokens: list[int], logprobs: list[float]) -> list[int]:
        """Append the step's tokens to the answers that have not ended; returns the rows of those still open."""
        open_rows = []
        for row, (answer, token, logprob) in enumerate(zip(answers, tokens, logprobs, strict=True)):
            if answer.finish_reason == "stop":
                continue
            answer.token_ids.append(token)
            answer.logprobs.append(logprob)
            if token in self._processor.stop_ids:
                answer.finish_reason = "stop"
            else:
                open_rows.append(row)
        return open_rows

    def _mask_banned(self, logits: Tensor) -> Tensor:
        return logits.index_fill_(1, self._banned_ids, float("-inf"))

    @property
    def _pad_id(self) -> int:
        pad_id = self._processor.tokenizer.pad_token_id
        return self._processor.stop_ids[0] if pad_id is None else pad_id

    def _rollout(self, answer: _Answer) -> Rollout:
        ids = [*answer.prompt.prefix_ids, *answer.token_ids]
        return Rollout(
            token_ids=tuple(answer.token_ids),
            logprobs=tuple(answer.logprobs),
            finish_reason=answer.finish_reason,
            text=self._processor.tokenizer.decode(ids, skip_special_tokens=True),
            policy_version=self.policy_version,
        )


@contextlib.contextmanager
def _inference(model: PreTrainedModel) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards every module is in the mode it was in."""
    were_training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module in were_training:
            module.training = True
