"""The step that every engine of bench_step runs: one checkpoint, the same questions, pictures and rewards."""

from __future__ import annotations

import io
import json
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bench.memory import peak_resident_bytes

IMAGE_TOKEN_SIDE = 28  # pixels: 14 of a patch, 2 x 2 patches merged


@dataclass(frozen=True)
class StepTask:
    """How large a step is, and how often it is run; `model` is the folder of the checkpoint."""

    model: str
    image_tokens: int = 256  # a square number
    prompts: int = 16
    answers: int = 8  # to a prompt
    tokens: int = 64  # of an answer; none ends earlier
    question: str = "how many red tiles are left of the blue one?"
    steps: int = 4  # the first one warms up
    micro_batch: int = 16  # responses in TRL's forward and backward
    micro_batch_tokens: int = 16384  # tokens in this engine's
    engine: str = "native"  # this engine's rollouts: native or vllm

    @property
    def responses(self) -> int:
        return self.prompts * self.answers

    def pictures(self) -> list[bytes]:
        """One PNG a question; no step meets another's."""
        side = IMAGE_TOKEN_SIDE * round(self.image_tokens**0.5)
        return [_picture(side, seed) for seed in range(self.steps * self.prompts)]


def _picture(side: int, seed: int) -> bytes:
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC).save(buffer, "PNG")
    return buffer.getvalue()


def text_reward(text: str) -> float:
    """A number in [0, 1) that differs from answer to answer, so that every answer is trained."""
    return zlib.crc32(text.encode()) % 9973 / 9973


@dataclass
class StepClock:
    """CPU and wall seconds of each phase of each step."""

    steps: list[dict[str, dict[str, float]]] = field(default_factory=list)
    _cpu: dict[str, float] = field(default_factory=dict)
    _wall: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        cpu, wall = time.process_time(), time.perf_counter()
        try:
            yield
        finally:
            self._cpu[name] = self._cpu.get(name, 0.0) + time.process_time() - cpu
            self._wall[name] = self._wall.get(name, 0.0) + time.perf_counter() - wall

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, its calls counted to a phase."""

        def run(*args: Any, **kwargs: Any) -> Any:
            with self.phase(name):
                return function(*args, **kwargs)

        return run

    def add(self, name: str, cpu_s: float, wall_s: float) -> None:
        """Seconds that were measured elsewhere."""
        self._cpu[name], self._wall[name] = cpu_s, wall_s

    def end_step(self) -> None:
        self.steps.append({"cpu_s": self._cpu, "wall_s": self._wall})
        self._cpu, self._wall = {}, {}


def run_task(run: Callable[[StepTask], dict[str, Any]], arguments: Sequence[str]) -> None:
    """The main of an engine's own process: task file in, result file out, so that nothing printed is in the way."""
    task_file, result_file = (Path(argument) for argument in arguments)
    result = run(StepTask(**json.loads(task_file.read_text())))
    if result.pop("is_first", True):
        result_file.write_text(json.dumps({**result, "peak_bytes": peak_resident_bytes()}))


def task_json(task: StepTask) -> str:
    return json.dumps(asdict(task))


def build_checkpoint(folder: str | Path) -> None:
    """Qwen2.5-VL of 5.07 M random parameters, loadable by this engine, TRL and vLLM alike."""
    import diva_engine  # isort: skip  # noqa: F401 - before transformers
    from transformers import AutoImageProcessor, AutoTokenizer, Qwen2_5_VLProcessor, Qwen2VLVideoProcessor

    from python_tests.models import build_tiny_model

    sizes = {"hidden_size": 256, "num_layers": 4, "intermediate_size": 768, "vision_size": 128}
    build_tiny_model("qwen2_5_vl", folder, vocab_size=2048, max_image_tokens=1024, **sizes)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    Qwen2_5_VLProcessor(
        image_processor=AutoImageProcessor.from_pretrained(folder),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(size={"shortest_edge": 28 * 28 * 4, "longest_edge": 28 * 28 * 1024}),
        chat_template=tokenizer.chat_template,
    ).save_pretrained(folder)


if __name__ == "__main__":
    build_checkpoint(sys.argv[1])
