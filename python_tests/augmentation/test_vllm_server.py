"""Against a real `vllm serve` on the CPU: a tiny random model, so the requests succeed and the replies are rejected."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from python_tests.augmentation.conftest import Workplace
from python_tests.models import build_tiny_model
from python_tests.prompts import random_image

pytestmark = pytest.mark.vllm
START_S = 300


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def is_up(url):
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return response.status == 200
    except (urllib.error.URLError, OSError):
        return False


class VllmServer:
    """`vllm serve` as a process of its own, up while the `with` block runs."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}/v1"
        self.log = folder / "vllm.log"
        # What `vllm serve` starts. Its own word fails in the package for CPUs, which it looks up as "vllm".
        words = [
            "-m",
            "vllm.entrypoints.openai.api_server",
            "--model",
            str(model),
            "--served-model-name",
            "tiny",
            "--port",
            str(self.port),
            "--host",
            "127.0.0.1",
        ]
        words += ["--dtype", "float32", "--max-model-len", "4096", "--enforce-eager", "--max-num-seqs", "8"]
        words += ["--kv-cache-memory-bytes", str(2**27)]
        environment = {"OMP_NUM_THREADS": "1", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
        self._process = subprocess.Popen(
            [sys.executable, *words],
            stdout=self.log.open("wb"),
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment, "VLLM_CACHE_ROOT": str(folder / "cache")},
            start_new_session=True,
        )

    def __enter__(self) -> VllmServer:
        end = time.monotonic() + START_S
        while not is_up(f"http://127.0.0.1:{self.port}/health"):
            if self._process.poll() is not None or time.monotonic() > end:
                self.__exit__()
                raise RuntimeError(f"vllm serve did not start:\n{self.log.read_text()[-4000:]}")
            time.sleep(0.5)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, 9)
            self._process.wait(60)


@pytest.fixture(scope="module")
def vllm_server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vllm")
    build_tiny_model("qwen2_5_vl", folder / "model", hidden_size=128)  # heads of 32: vLLM has no 16 on a CPU
    with VllmServer(folder, folder / "model") as server:
        yield server


def test_rows_with_images_are_answered_counted_and_rejected_with_reasons(tmp_path, vllm_server, capsys):
    place = Workplace(tmp_path, vllm_server)
    for number in range(3):
        random_image(56, 56, number).save(tmp_path / f"{number}.png")
    place.write([{"problem": f"Count to {n}?", "answer": str(n), "image": f"{n}.png"} for n in range(3)])
    words = ["--max-tokens", "24", "--concurrency", "2", "--tries", "1", "--retries", "2"]
    code = place.run(*words)
    said = capsys.readouterr().out
    assert code == 0, said
    found = re.search(r"6 requests, in ([\d,]+) out ([\d,]+) tokens", said)
    num_in, num_out = (int(number.replace(",", "")) for number in found.groups())
    assert num_in > 6 * 150, "prompts are counted by the server"
    assert 6 <= num_out <= 6 * 24
    outcomes = place.journal()[1:]
    assert len(outcomes) == 6
    assert all(outcome["requests"] == 1 and not outcome["failed"] and outcome["rejected"] for outcome in outcomes)
    reasons = {one["reason"] for outcome in outcomes for one in outcome["rejected"]}
    assert reasons <= {"cut off at --max-tokens", "no <paraphrase> tags", "no <step> and <answer> tags"}
    assert len(place.rows()) == 3


def test_a_model_that_the_server_does_not_have_is_named(tmp_path, vllm_server, capsys):
    place = Workplace(tmp_path, vllm_server)
    place.write([{"problem": "A?", "answer": "1"}])
    assert place.run("--model", "other") == 2
    assert "HTTP 404" in capsys.readouterr().err
