"""Rollout speed: the native engine beside transformers' generate, same checkpoint, same prompts, same number of tokens.

    OMP_NUM_THREADS=1 python -m bench.bench_rollout

Speeds are generated tokens per second of CPU time (of wall time on a GPU): median, slowest and fastest of the repeats,
both engines taking turns. One JSON line an engine goes to bench/results/rollout.jsonl.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bench.harness import environment
from diva_engine.policy.model import Policy, load_policy
from diva_engine.records import GenerationJob, Prompt, Sampling
from diva_engine.rollout.native_engine import NativeEngine
from python_tests.models import VISION_FAMILIES, build_tiny_model
from python_tests.prompts import make_prompt, random_image

RESULTS = Path(__file__).parent / "results" / "rollout.jsonl"


def main() -> None:
    options = read_options()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        sizes = {"hidden_size": options.hidden, "num_layers": options.layers, "vision_size": options.vision}
        build_tiny_model(options.family, folder, vocab_size=options.vocab, **sizes)
        policy = load_policy(folder, dtype=options.dtype, device=options.device, max_pixels=options.pixels**2)
    prompts = [
        make_prompt(
            policy.model, policy.processor, "how many red tiles?", [random_image(options.pixels, options.pixels, i)]
        )
        for i in range(options.prompts)
    ]
    engines = {
        "native": native_engine(policy, prompts, options),
        "transformers": transformers_generate(policy, prompts, options),
    }
    speeds: dict[str, list[float]] = {name: [] for name in engines}
    for _ in range(options.repeats + 1):
        for name, generate in engines.items():
            speeds[name].append(timed(generate, options.device))
    for name, measured in speeds.items():
        report(name, policy, prompts, measured[1:], options)  # the first one warms up


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=VISION_FAMILIES, default="qwen2_5_vl")
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--vision", type=int, default=96, help="hidden size of the vision tower")
    parser.add_argument("--vocab", type=int, default=264)
    parser.add_argument("--pixels", type=int, default=84, help="side of the square pictures")
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--answers", type=int, default=8, help="answers a prompt")
    parser.add_argument("--tokens", type=int, default=27, help="tokens an answer")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def native_engine(policy: Policy, prompts: list[Prompt], options: argparse.Namespace) -> Callable[[], int]:
    endless = dataclasses.replace(
        policy.processor, stop_ids=(), banned_ids=(*policy.processor.banned_ids, *policy.processor.stop_ids)
    )
    engine = NativeEngine(policy.model, endless)
    jobs = [GenerationJob(prompt, tuple(range(options.answers))) for prompt in prompts]

    def generate() -> int:
        rollouts = engine.generate(jobs, Sampling(max_tokens=options.tokens))
        return sum(len(rollout.token_ids) for group in rollouts for rollout in group)

    return generate


def transformers_generate(policy: Policy, prompts: list[Prompt], options: argparse.Namespace) -> Callable[[], int]:
    """All prompts have one length, so no padding is needed."""
    token_ids = torch.tensor([prompt.token_ids for prompt in prompts], device=policy.device)
    banned = [*policy.processor.banned_ids, *policy.processor.stop_ids]
    inputs: dict[str, Any] = {
        "input_ids": token_ids,
        "attention_mask": torch.ones_like(token_ids),
        "mm_token_type_ids": (token_ids == policy.processor.image_token_id).int(),
        "pixel_values": torch.cat([prompt.pixel_values for prompt in prompts]).to(policy.device),
        "image_grid_thw": torch.cat([prompt.image_grid_thw for prompt in prompts]).to(policy.device),
    }

    def generate() -> int:
        output = policy.model.generate(
            **inputs,
            do_sample=True,
            num_return_sequences=options.answers,
            max_new_tokens=options.tokens,
            suppress_tokens=banned,
            top_k=0,
        )
        policy.processor.tokenizer.batch_decode(output[:, token_ids.shape[1] :], skip_special_tokens=True)
        return output[:, token_ids.shape[1] :].numel()

    return generate


def timed(generate: Callable[[], int], device: str) -> float:
    """Generated tokens per second."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    start = clock()
    num_tokens = generate()
    if device != "cpu":
        torch.cuda.synchronize()
    return num_tokens / (clock() - start)


def report(name: str, policy: Policy, prompts: list[Prompt], speeds: list[float], options: argparse.Namespace) -> None:
    median, unit = statistics.median(speeds), "CPU s" if options.device == "cpu" else "s"
    print(f"{name:>13} {median:10,.0f} tokens per {unit} ({min(speeds):,.0f} to {max(speeds):,.0f})")
    line = {
        "engine": name,
        "tokens_per_s": round(median),
        "slowest": round(min(speeds)),
        "fastest": round(max(speeds)),
        "clock": "cpu" if options.device == "cpu" else "wall",
        "parameters": sum(parameter.numel() for parameter in policy.model.parameters()),
        "prompt_tokens": len(prompts[0].token_ids),
        "options": vars(options),
        "environment": environment(),
    }
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("a", encoding="utf-8") as results:
        results.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
