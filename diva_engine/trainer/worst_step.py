"""One step as large as the settings allow, to see how much memory it takes."""

from __future__ import annotations

import io
import math
from dataclasses import replace

import torch
from PIL import Image

from diva_engine.algorithm.recipes import find_recipe
from diva_engine.algorithm.variants import original
from diva_engine.config import Config
from diva_engine.data.prompts import PromptEncoder
from diva_engine.policy.model import Policy
from diva_engine.records import (
    Credit,
    GenerationJob,
    Problem,
    Processor,
    Prompt,
    Request,
    Rollout,
    Sampling,
    ScoredGroup,
)
from diva_engine.trainer.memory_plan import LargestStep, largest_micro_batch, rollout_rows
from diva_engine.trainer.peak_memory import peak_bytes, resident_bytes
from diva_engine.trainer.policies import find_device, load_whole_policy, open_policy
from diva_engine.trainer.rollout_engine import build_engine
from diva_engine.trainer.update import Updater

FILLER = "\u00e4"  # repeated to fill a prompt; at least one token in every vocabulary


def take_worst_step(config: Config, step: LargestStep) -> dict[str, int]:
    """Peak bytes of the rollout and of the update; what the process held before the model was loaded is left out."""
    before = resident_bytes(torch.device(find_device(config.trainer.device)))
    policy = open_policy(config)
    policy = replace(policy, processor=never_ending(policy.processor))
    reference = open_policy(config) if config.algorithm.use_kl_loss else None
    engine = build_engine(config, policy, lambda: load_whole_policy(config).model)
    rows, micro_batch = rollout_rows(config, step) // step.answers, len(largest_micro_batch(config, step))
    num_groups = min(config.data.rollout_batch_size, 2 * micro_batch)
    prompts = largest_prompts(policy, step, max(rows, num_groups))
    jobs = [GenerationJob(prompt, tuple(range(step.answers))) for prompt in prompts[:rows]]
    sampling = Sampling(config.worker.rollout.temperature, config.worker.rollout.top_p, step.answer_tokens)
    updater = Updater(
        policy, find_recipe(config.algorithm.adv_estimator).loss, config, num_steps=2, reference=reference
    )
    groups = [longest_answers(policy, prompt, step) for prompt in prompts[:num_groups]]
    updater.update(groups[:1], _credit(1, step))  # from now on the moments are there
    rollout = peak_bytes(lambda: engine.generate(jobs, sampling), policy.device)
    update = peak_bytes(lambda: updater.update(groups, _credit(num_groups, step)), policy.device)
    return {"rollout": rollout - before, "update": update - before}


def never_ending(processor: Processor) -> Processor:
    """The processor without ends of answers, so that all have the full number of tokens."""
    return replace(processor, stop_ids=(), banned_ids=(*processor.banned_ids, *processor.stop_ids))


def largest_prompts(policy: Policy, step: LargestStep, count: int) -> list[Prompt]:
    """Prompts of `step.prompt_tokens` tokens, each with pixels of its own."""
    encoder = PromptEncoder(policy.processor, max_prompt_length=1 << 40)

    def encode(num_fillers: int) -> Prompt:
        marker, images = ("<image>", (_picture(step),)) if step.image_tokens else ("", ())
        problem = Problem(id="largest", text=marker + FILLER * num_fillers, answer="", images=images)
        return encoder.encode(original(problem, 5.0), key=0)

    shortest, longer = len(encode(1).token_ids), len(encode(101).token_ids)
    prompt = encode(1 + max(0, (step.prompt_tokens - shortest) * 100 // (longer - shortest)))
    pixels = prompt.pixel_values
    return [replace(prompt, pixel_values=None if pixels is None else pixels.clone()) for _ in range(count)]


def _picture(step: LargestStep) -> bytes:
    height = math.isqrt(step.image_tokens)
    sides = (step.token_side * (step.image_tokens // height), step.token_side * height)
    buffer = io.BytesIO()
    Image.new("RGB", sides).save(buffer, "PNG")
    return buffer.getvalue()


def longest_answers(policy: Policy, prompt: Prompt, step: LargestStep) -> ScoredGroup:
    """Answers nobody sampled: their sampler's log-probabilities are unknown."""
    banned = policy.processor.banned_ids
    token = next(i for i in range(policy.model.config.get_text_config().vocab_size) if i not in banned)
    rollout = Rollout((token,) * step.answer_tokens, (math.nan,) * step.answer_tokens, "length", "", 0)
    request = Request(original(Problem(id="largest", text="", answer=""), 5.0), step.answers)
    return ScoredGroup(request, prompt, (rollout,) * step.answers, ())


def _credit(num_groups: int, step: LargestStep) -> Credit:
    """Every answer is trained."""
    advantage = torch.ones(num_groups * step.answers)
    advantage[::2] = -1.0
    return Credit(advantage, prefix_weight=torch.zeros(num_groups))
