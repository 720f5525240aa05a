"""The native rollout engine: batched sampling on the policy's own weights, without a further dependency.

jobs -> chunks of at most `max_batch_rows` answers -> prompts prefilled once each (transformers' forward, pictures
included) -> decoding steps, all answers to a prompt reading its keys together; answers that end leave the batch
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedModel

from diva_engine.records import (
    FinishReason,
    GenerationJob,
    OnAnswered,
    Processor,
    Prompt,
    Rollout,
    Sampling,
    UserError,
)
from diva_engine.rollout.decoder import SUPPORTED_MODEL_TYPES
from diva_engine.rollout.decoding import Decoding, PlainDecoding
from diva_engine.rollout.sampling import sample_tokens, uniform_table
from diva_engine.rollout.stop_strings import StopStrings

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
    beyond the last bits of the matrix products. `owns_weights`: the model is no part of the policy but a copy, which
    `update_weights` brings up to date.
    """

    def __init__(
        self, model: PreTrainedModel, processor: Processor, *, max_batch_rows: int = 512, owns_weights: bool = False
    ) -> None:
        if model.config.model_type not in SUPPORTED_MODEL_TYPES:
            raise UserError(
                f"rollout.engine=native does not know the decoder of model type {model.config.model_type!r} "
                f"(it knows {', '.join(SUPPORTED_MODEL_TYPES)}); take a model of one of these"
            )
        self.policy_version = 0
        self._model = model
        self._processor = processor
        self._max_batch_rows = max_batch_rows
        self._owns_weights = owns_weights
        self._banned_ids = torch.tensor(processor.banned_ids, dtype=torch.int64, device=model.device)

    def update_weights(self, policy_version: int, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Rollouts from now on carry this version. Weights that are the policy's own are not taken again."""
        self.policy_version = policy_version
        if not self._owns_weights:
            return
        own = self._model.state_dict()
        with torch.no_grad():
            for name, weight in weights:
                own[name].copy_(weight)

    def sleep(self) -> None:
        """Nothing: the weights are the policy's own, and nothing is kept between calls."""

    def close(self) -> None:
        """Nothing: what it holds goes with the object."""

    def generate(
        self, jobs: Sequence[GenerationJob], sampling: Sampling, on_answered: OnAnswered | None = None
    ) -> list[list[Rollout]]:
        """One rollout a seed, in the order of the jobs and of their seeds."""
        by_job = [[_Answer(number, job.prompt, seed) for seed in job.seeds] for number, job in enumerate(jobs)]
        answers = [answer for own in by_job for answer in own]
        num_open = [len(own) for own in by_job]
        rollouts: list[list[Rollout]] = [[] for _ in jobs]
        with _inference(self._model):
            for start in range(0, len(answers), self._max_batch_rows):
                for job in self._answer_chunk(answers[start : start + self._max_batch_rows], sampling):
                    num_open[job] -= 1
                    if num_open[job]:
                        continue
                    rollouts[job] = [self._rollout(answer) for answer in by_job[job]]
                    if on_answered is not None:
                        on_answered(job, rollouts[job])
        return rollouts

    def _answer_chunk(self, answers: list[_Answer], sampling: Sampling) -> Iterator[int]:
        """Decode `answers` side by side, until each has ended or has `sampling.max_tokens` tokens; of each that ends,
        at once, its job's number."""
        numbers = list(dict.fromkeys(answer.job for answer in answers))
        prompts = {answer.job: answer.prompt for answer in answers}
        device = self._model.device
        prompt_rows = torch.tensor([numbers.index(answer.job) for answer in answers], device=device)
        decoding = self._begin([prompts[number] for number in numbers], prompt_rows, sampling.max_tokens)
        uniforms = uniform_table([answer.seed for answer in answers], sampling.max_tokens).to(device)
        stop = StopStrings(sampling.stop, self._processor.tokenizer)
        logits = decoding.first_logits
        for step in range(sampling.max_tokens):
            tokens, logprobs = sample_tokens(self._mask_banned(logits), uniforms[:, step], sampling)
            open_rows = _open_still(answers, self._record(answers, tokens.tolist(), logprobs.tolist()), stop)
            is_last = not open_rows or step + 1 == sampling.max_tokens
            ended = (answer for answer in answers if is_last or answer.finish_reason == "stop")
            yield from [answer.job for answer in ended if len(answer.token_ids) == step + 1]
            if is_last:
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


def _open_still(answers: Sequence[_Answer], open_rows: Sequence[int], stop: StopStrings) -> list[int]:
    """The rows without those whose last token completes a stop string: their answers end."""
    still = []
    for row in open_rows:
        if stop.end_with(answers[row].token_ids):
            answers[row].finish_reason = "stop"
        else:
            still.append(row)
    return still


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
