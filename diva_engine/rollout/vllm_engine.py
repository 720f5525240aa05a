"""Rollouts by vLLM, inside the trainer's own process. The only file that imports vllm.

jobs -> one vLLM request a seed, made of the trainer's own token ids and pixels (vLLM renders, resizes and normalises
nothing) -> tokens, and their log-probabilities under the distribution that they were drawn from
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from diva_engine.config import RolloutConfig
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
from diva_engine.rollout.rank_group import jobs_by_rank, tensor_parallel_group
from diva_engine.rollout.side_effects import default_group_kept, without_side_effects

# Read when vllm is imported. What the user has set stands, but for the first: an engine in a process of its own
# could not be handed weights.
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

from vllm import EngineArgs, LLMEngine, SamplingParams
from vllm.inputs import EngineInput, mm_input, tokens_input
from vllm.multimodal.inputs import MultiModalFieldConfig, MultiModalKwargsItems, PlaceholderRange
from vllm.sampling_params import RequestOutputKind

# KV cache on the CPU unless set, where vLLM would take a share of the machine's memory.
_CPU_KV_CACHE_BYTES = 512 * 2**20
# Tokens in a block of the KV cache; whole blocks of a prompt are shared by its answers. vLLM's CPU kernels take
# multiples of 32.
_CPU_BLOCK_SIZE = 32


@dataclass(frozen=True)
class EngineModel:
    """The model that vLLM builds; its weights come by `update_weights`."""

    folder: Path  # config and tokenizer; read while the engine is built
    dtype: Literal["float32", "bfloat16"]
    device: torch.device
    max_model_len: int  # tokens of prompt, forced prefix and answer together
    trust_remote_code: bool = False


class VllmEngine:
    """Samples answers with the weights of the last `update_weights`; before the first it has none and refuses.

    Every answer draws from a generator of its own, made of its seed. With `tensor_parallel_size` k, every k ranks in
    a row hold one engine together: each call is then a collective one of those ranks, each rank getting the answers
    to its own jobs.
    """

    def __init__(self, model: EngineModel, processor: Processor, settings: RolloutConfig) -> None:
        self.policy_version = -1
        self._processor = processor
        self._settings = settings
        self._max_model_len = model.max_model_len
        self._can_sleep = settings.free_cache_engine and model.device.type == "cuda"
        self._is_asleep = False
        self._is_guest = dist.is_initialized()  # in a world that is the trainer's
        arguments = _engine_arguments(model, processor, settings)
        with without_side_effects():
            try:
                self._engine = LLMEngine.from_engine_args(EngineArgs(**arguments))
            except (ValueError, RuntimeError, AssertionError) as error:
                raise UserError(f"vLLM cannot load {model.folder} ({' '.join(str(error).split())[-300:]})") from error
        self._rank_group = tensor_parallel_group(settings.tensor_parallel_size)

    def update_weights(self, policy_version: int, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Takes whole tensors by Hugging Face name, one at a time, and forgets all that older weights computed."""
        remaining = iter(weights)
        if self._is_asleep:
            self._engine.wake_up(["weights"])
        self._engine.collective_rpc("reload_weights", kwargs={"weights_iterator": remaining})
        for _ in remaining:  # gathering sharded weights is a collective: no rank may stop early
            pass
        if self._is_asleep:
            self._engine.wake_up(["kv_cache"])
            self._is_asleep = False
        # Both, and before any request: pictures embedded by the old weights would enter the new prefix cache.
        if not self._engine.reset_prefix_cache():
            raise RuntimeError("vLLM kept its prefix cache: requests are still running")
        self._engine.reset_encoder_cache()
        self.policy_version = policy_version

    def close(self) -> None:
        """Ends vLLM and its process groups. Without it they end with the object, wherever its memory is collected, and
        take those of another engine with them."""
        with default_group_kept(self._is_guest):
            self._engine.engine_core.shutdown()

    def sleep(self) -> None:
        """Gives the memory of KV cache and weights to the trainer, until the next `update_weights`."""
        if self._can_sleep and not self._is_asleep:
            self._engine.sleep(level=self._settings.sleep_level)
            self._is_asleep = True

    def generate(
        self, jobs: Sequence[GenerationJob], sampling: Sampling, on_answered: OnAnswered | None = None
    ) -> list[list[Rollout]]:
        """One rollout a seed, in the order of the jobs and of their seeds."""
        if self.policy_version < 0 or self._is_asleep:
            raise RuntimeError("the vLLM engine has no weights: call update_weights first")
        if sampling.temperature and not 0.01 <= sampling.temperature <= 2:  # vLLM would raise it, or die
            raise UserError(f"vllm samples at temperature 0 or from 0.01 to 2, not at {sampling.temperature:g}")
        refused = [error for job in jobs if (error := self._unfit(job.prompt, sampling))]
        asked = jobs_by_rank(self._rank_group, jobs, refused)
        if self._rank_group is None:
            return self._answer(jobs, sampling, on_answered)
        start = sum(len(part) for part in asked[: dist.get_rank(self._rank_group)])

        def of_own(number: int, rollouts: Sequence[Rollout]) -> None:
            if on_answered is not None and start <= number < start + len(jobs):
                on_answered(number - start, rollouts)

        rollouts = self._answer([job for part in asked for job in part], sampling, of_own)
        return rollouts[start : start + len(jobs)]

    def _answer(
        self, jobs: Sequence[GenerationJob], sampling: Sampling, on_answered: OnAnswered | None
    ) -> list[list[Rollout]]:
        places = {}
        for number, job in enumerate(jobs):
            engine_input = _engine_input(job.prompt, self._processor)
            for sample, seed in enumerate(job.seeds):
                name = f"{number}-{sample}"
                self._engine.add_request(name, engine_input, self._sampling_params(sampling, seed))
                places[name] = (number, sample)
        ended: list[dict[int, Any]] = [{} for _ in jobs]  # by sample
        rollouts: list[list[Rollout]] = [[] for _ in jobs]
        with without_side_effects():
            for output in self._finished_outputs():
                number, sample = places[output.request_id]
                ended[number][sample] = output.outputs[0]
                if len(ended[number]) < len(jobs[number].seeds):
                    continue
                answers = [answer for _, answer in sorted(ended[number].items())]
                rollouts[number] = [self._rollout(jobs[number].prompt, answer) for answer in answers]
                if on_answered is not None:
                    on_answered(number, rollouts[number])
        return rollouts

    def _finished_outputs(self) -> Iterator[Any]:
        while self._engine.has_unfinished_requests():
            yield from (output for output in self._engine.step() if output.finished)

    def _sampling_params(self, sampling: Sampling, seed: int) -> SamplingParams:
        return SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            max_tokens=sampling.max_tokens,
            seed=seed,
            logprobs=0,  # of the sampled token alone
            logit_bias=dict.fromkeys(self._processor.banned_ids, float("-inf")),
            stop_token_ids=list(self._processor.stop_ids),
            ignore_eos=True,  # nothing else ends an answer than the stop ids and strings
            stop=list(sampling.stop),
            include_stop_str_in_output=True,
            detokenize=bool(sampling.stop),
            output_kind=RequestOutputKind.FINAL_ONLY,
        )

    def _rollout(self, prompt: Prompt, answer: Any) -> Rollout:
        token_ids = tuple(answer.token_ids)
        reasons: dict[str, FinishReason] = {"stop": "stop", "length": "length"}
        if answer.finish_reason not in reasons:
            raise RuntimeError(f"vLLM gave an answer up: {answer.finish_reason}")
        return Rollout(
            token_ids=token_ids,
            logprobs=tuple(found[token].logprob for token, found in zip(token_ids, answer.logprobs, strict=True)),
            finish_reason=reasons[answer.finish_reason],
            text=self._processor.tokenizer.decode([*prompt.prefix_ids, *token_ids], skip_special_tokens=True),
            policy_version=self.policy_version,
        )

    def _unfit(self, prompt: Prompt, sampling: Sampling) -> UserError | None:
        """What vLLM would take without a word, or die of."""
        num_images = 0 if prompt.image_grid_thw is None else len(prompt.image_grid_thw)
        limit = self._settings.limit_images
        if limit and num_images > limit:
            return UserError(f"a prompt has {num_images} images, more than worker.rollout.limit_images={limit}")
        placeholders = prompt.token_ids.count(self._processor.image_token_id)
        expected = sum(_image_sizes(prompt, self._processor.merge_size))
        if placeholders != expected:
            return UserError(f"a prompt has {placeholders} image tokens where its {num_images} images fill {expected}")
        length = len(prompt.token_ids) + len(prompt.prefix_ids) + sampling.max_tokens
        if length > self._max_model_len:
            return UserError(
                f"a prompt of {len(prompt.token_ids)} tokens with {len(prompt.prefix_ids)} of a forced beginning and "
                f"{sampling.max_tokens} of an answer does not fit worker.rollout.max_model_len={self._max_model_len}; "
                "raise it, or lower data.max_prompt_length or data.max_response_length"
            )
        return None


def _engine_arguments(model: EngineModel, processor: Processor, settings: RolloutConfig) -> dict[str, Any]:
    on_cpu = model.device.type == "cpu"
    arguments: dict[str, Any] = {
        "model": str(model.folder),
        "dtype": model.dtype,
        "load_format": "dummy",  # weights come by update_weights
        "trust_remote_code": model.trust_remote_code,
        "generation_config": "vllm",  # no sampling settings from the model folder
        "max_model_len": model.max_model_len,
        "max_num_seqs": settings.max_batch_rows,
        "max_num_batched_tokens": max(settings.max_num_batched_tokens, settings.max_batch_rows),
        "gpu_memory_utilization": settings.gpu_memory_utilization,
        "kv_cache_memory_bytes": settings.kv_cache_memory_bytes or (_CPU_KV_CACHE_BYTES if on_cpu else None),
        "enforce_eager": settings.enforce_eager or on_cpu,
        "tensor_parallel_size": settings.tensor_parallel_size,
        "enable_prefix_caching": True,
        "enable_sleep_mode": settings.free_cache_engine and not on_cpu,
        # At the sampling temperature and with the bans, as the trainer's forward has them.
        "logprobs_mode": "processed_logprobs",
        "disable_log_stats": True,
    }
    if "LOCAL_RANK" in os.environ:  # torchrun: vLLM finds its device and its peers by the ranks
        arguments["distributed_executor_backend"] = "external_launcher"
    if on_cpu:
        arguments["block_size"] = _CPU_BLOCK_SIZE
    if processor.image_processor is not None:
        arguments |= {
            "limit_mm_per_prompt": {"image": settings.limit_images or 999, "video": 0},
            "mm_processor_kwargs": {"size": dict(processor.image_processor.size)},  # bounds the tokens of an image
            "mm_device_do_normalize": False,  # our pixels are normalised
            "mm_processor_cache_gb": 0,  # its processor is not used
            "skip_mm_profiling": on_cpu,
        }
    return arguments


def _engine_input(prompt: Prompt, processor: Processor) -> EngineInput:
    token_ids = [*prompt.token_ids, *prompt.prefix_ids]
    if prompt.pixel_values is None or prompt.image_grid_thw is None:
        return tokens_input(token_ids)
    grids, pixels = prompt.image_grid_thw, prompt.pixel_values
    patches = grids.prod(-1)
    fields = {
        "pixel_values": MultiModalFieldConfig.flat_from_sizes("image", patches),
        "image_grid_thw": MultiModalFieldConfig.batched("image", keep_on_cpu=True),
    }
    features: Any = {"pixel_values": pixels, "image_grid_thw": grids}
    places = [i for i, token in enumerate(prompt.token_ids) if token == processor.image_token_id]
    ranges, first = [], 0
    for size in _image_sizes(prompt, processor.merge_size):
        ranges.append(PlaceholderRange(offset=places[first], length=size))
        first += size
    return mm_input(
        token_ids,
        MultiModalKwargsItems.from_hf_inputs(features, fields),
        {"image": [_content_hash(*image) for image in zip(pixels.split(patches.tolist()), grids, strict=True)]},
        {"image": ranges},
    )


def _image_sizes(prompt: Prompt, merge_size: int) -> list[int]:
    """Tokens of each image."""
    grids = prompt.image_grid_thw
    return [] if grids is None else (grids.prod(-1) // merge_size**2).tolist()


def _content_hash(pixels: Tensor, grid: Tensor) -> str:
    """What vLLM knows a picture by: equal pictures are embedded once."""
    digest = hashlib.blake2b(pixels.contiguous().numpy().tobytes(), digest_size=16)
    digest.update(str(grid.tolist()).encode())
    return digest.hexdigest()
