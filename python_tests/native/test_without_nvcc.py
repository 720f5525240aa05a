"""A wheel built without nvcc: whole on the CPU; on CUDA every op says what is missing, or, with the extra cuda-jit, has
its kernels compiled at run time."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from python_tests.emulation import launchers

ROOT = Path(__file__).resolve().parent.parent.parent
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """A folder with what a wheel holds, and a link to the tests."""
    folder = tmp_path_factory.mktemp("without_nvcc")
    command = [sys.executable, "setup.py", "-q", "build", "--build-base", folder / "build", "--build-lib", folder]
    subprocess.run(command, cwd=ROOT, env={**os.environ, "DIVA_NO_CUDA": "1"}, check=True, capture_output=True)
    (folder / "python_tests").symlink_to(ROOT / "python_tests")
    return folder


def run(wheel: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(wheel), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, *words]
    return subprocess.run(command, cwd=wheel, env=environment, capture_output=True, text=True, check=False)


REFUSALS = """
import torch, diva_engine
from diva_engine import ops
from diva_engine.records import ImageOperation
from torch.utils._python_dispatch import TorchDispatchMode
assert diva_engine.build_info()["cuda"] is None
assert diva_engine.__file__.startswith(FOLDER)


class AsIfOnGpu(TorchDispatchMode):
    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        if op.namespace != "diva_engine":
            return op(*args, **(kwargs or {}))
        with torch._C._IncludeDispatchKeyGuard(torch._C.DispatchKey.CUDA):
            return op(*args, **(kwargs or {}))


x, offsets = torch.ones(3), torch.tensor([0, 3])
logits, indices, picture = torch.ones(3, 5), torch.arange(3), torch.ones(4, 4, 3, dtype=torch.uint8)
backward = torch.ops.diva_engine.token_logprob_backward_.default
CALLS = {
    "group_stats": lambda: ops.group_stats(x, offsets),
    "diva_advantage": lambda: ops.diva_advantage(x, offsets, torch.tensor([0, 1]), x[:1]),
    "shared_std_advantage": lambda: ops.shared_std_advantage(x, offsets, indices[:1], 1),
    "update_difficulty": lambda: ops.update_difficulty(x, indices, x),
    "policy_loss": lambda: ops.policy_loss(x, x, x, offsets),
    "token_logprob": lambda: ops.token_logprob(logits, indices),
    "its backward": lambda: backward(logits, indices, x, x, x, x, None, 1.0),
    "spectral_entropy": lambda: ops.spectral_entropy(torch.ones(3, 2), offsets),
    "perturb_images": lambda: ops.perturb_images([picture], [[ImageOperation("blur", 0.5)]], keys=[1], seed=1),
    "histogram_entropy": lambda: ops.histogram_entropy([picture]),
}
for name, call in CALLS.items():
    try:
        with AsIfOnGpu():
            call()
    except RuntimeError as error:
        print(name, "|", str(error).splitlines()[0])
"""


def test_every_op_says_on_a_gpu_what_is_missing(wheel):
    done = run(wheel, "-c", f"FOLDER = {str(wheel)!r}\n{REFUSALS}")
    assert done.returncode == 0, done.stderr
    refusals = dict(line.split(" | ") for line in done.stdout.splitlines())
    assert {*launchers.NAMES, "its backward"} == set(refusals)
    for name, words in refusals.items():
        op = "token_logprob" if name == "its backward" else name
        assert words.startswith(f"{op}: this diva_engine was built without its CUDA kernels; install it where nvcc is")
        assert words.endswith("or have them compiled at run time: pip install 'diva-engine[cuda-jit]'")


def test_it_holds_the_sources_it_would_compile(wheel):
    program = "from diva_engine.ops import run_time_compiler as r; print(r.SOURCES)"
    assert run(wheel, "-c", program).stdout.strip() == str(wheel / "diva_engine" / "_csrc")
    for op in launchers.NAMES:
        assert (wheel / "diva_engine" / "_csrc" / op / f"{op}_cuda.cu").is_file()


@pytest.mark.gpu
def test_every_op_runs_on_a_gpu_with_kernels_compiled_at_run_time(wheel):
    pytest.importorskip("cupy")
    files = ("python_tests/ops", "--import-mode=importlib", "-p", "no:cacheprovider")
    done = run(wheel, "-m", "pytest", "-q", "-m", "gpu", "-s", "-p", "no:logging", *files)  # the log goes to stderr
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    compiled = re.findall(r"built without nvcc: compiling (\S+) for sm_\d+ at run time", done.stderr)
    assert sorted(compiled) == sorted(launchers.KERNELS)
