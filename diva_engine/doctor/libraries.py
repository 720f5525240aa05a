"""The installed libraries: whether each works, and whether its version is one that this package goes with."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from diva_engine.doctor.finding import Finding, guarded

TIME_LIMIT_S = 180.0
DISTRIBUTION = "diva-engine"
PLAIN = ("numpy", "pillow", "pyarrow", "pyyaml", "jinja2", "rich", "tensorboard", "datasets", "huggingface-hub",
         "tokenizers", "safetensors")  # fmt: skip
BUILD = "pip install . in the source tree (or python setup.py build_ext --inplace to work in it)"


@dataclass(frozen=True)
class Probe:
    """What came of one probe."""

    is_there: bool
    found: Mapping[str, Any]
    error: str = ""  # why it failed; empty: it did not


def check_libraries() -> list[Finding]:
    names = ("torch", "ops", "transformers", "torchvision", "vllm", "flash_attn", "math_verify")
    with ThreadPoolExecutor(4) as executor:
        probes = dict(zip(names, executor.map(run_probe, names), strict=True))
    windows = version_windows()
    vllm = "needed for worker.rollout.engine=vllm only"
    flash = "not needed: attention, flash_attention_2 too, runs on torch's own kernels"
    checks: dict[str, Callable[[], Finding | list[Finding]]] = {
        "torch": lambda: check_torch(probes["torch"], windows.get("torch", "")),
        "compiled ops": lambda: check_ops(probes["ops"], probes["torch"]),
        "transformers": lambda: check_required("transformers", probes["transformers"], windows.get("transformers", "")),
        "torchvision": lambda: check_torchvision(probes["torchvision"]),
        "vllm": lambda: check_optional("vllm", probes["vllm"], vllm),
        "flash_attn": lambda: check_optional("flash_attn", probes["flash_attn"], flash),
        "math_verify": lambda: check_required("math_verify", probes["math_verify"], windows.get("math-verify", "")),
        "other libraries": lambda: check_plain(windows),
    }
    return [finding for name, check in checks.items() for finding in guarded(name, check)]


def run_probe(name: str) -> Probe:
    """Imports and uses the library in another process; it has TIME_LIMIT_S."""
    if name != "ops" and importlib.util.find_spec(name) is None:
        return Probe(False, {})
    command = [sys.executable, "-m", "diva_engine.doctor.probes", name]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIME_LIMIT_S, check=False)
    except subprocess.TimeoutExpired:
        return Probe(True, {}, f"its import did not end within {TIME_LIMIT_S:g} s")
    lines = done.stdout.strip().splitlines()
    if done.returncode == 0 and lines and lines[-1].startswith("{"):
        return Probe(True, json.loads(lines[-1]))
    return Probe(True, {}, _failure(done))


def check_torch(probe: Probe, window: str) -> list[Finding]:
    finding = check_required("torch", probe, window)
    if not probe.found:
        return [finding]
    gpus: Sequence[Mapping[str, Any]] = probe.found["gpus"]
    built = probe.found["cuda"]
    findings = [finding, Finding("torch's CUDA", "ok", built or "none: a CPU build")]
    for index, gpu in enumerate(gpus):
        value = f"{gpu['name']}, sm_{gpu['capability']}, {gpu['free_gib']:.0f} of {gpu['total_gib']:.0f} GiB free"
        if not gpu["is_right"]:
            findings.append(Finding(f"GPU {index}", "broken", f"{value}; it multiplies wrongly", "take it out of use"))
        elif gpu["free_gib"] < 0.5 * gpu["total_gib"]:
            mend = "nvidia-smi names the processes that hold its memory"
            findings.append(Finding(f"GPU {index}", "warn", value, mend))
        else:
            findings.append(Finding(f"GPU {index}", "ok", value))
    return findings


def check_ops(probe: Probe, torch: Probe) -> Finding:
    if not probe.found:
        return Finding("compiled ops", "broken", probe.error, BUILD)
    info, gpus = probe.found, torch.found.get("gpus", ())
    architectures = str(info["cuda_architectures"])
    value = f"commit {info['commit']}, built against torch {info['built_against_torch']}, "
    value += f"CUDA {info['cuda']} for {architectures}" if info["cuda"] else "CPU only"
    if not gpus or info["compiled_at_run_time"]:
        return Finding("compiled ops", "ok", value)
    if not info["cuda"]:
        mend = f"with nvcc on PATH, {BUILD}; or pip install 'diva-engine[cuda-jit]'"
        return Finding("compiled ops", "warn", f"{value}; this machine has GPUs", mend)
    missing = sorted({gpu["capability"] for gpu in gpus if not runs_on(architectures, gpu["capability"])})
    if missing:
        names = ", ".join(f"sm_{capability}" for capability in missing)
        wanted = ";".join(f"{capability / 10:.1f}" for capability in missing)
        return Finding("compiled ops", "broken", f"{value}; nothing for {names}",
                       f'TORCH_CUDA_ARCH_LIST="{wanted}" {BUILD}')  # fmt: skip
    return Finding("compiled ops", "ok", value)


def runs_on(architectures: str, capability: int) -> bool:
    """Whether code for "80-real;90-real;120" (CMake's words) runs on a GPU: the same major version, no newer minor; or
    PTX, which a name without -real holds, of any older one."""
    for name in re.findall(r"(\d+)[af]?(-real|-virtual)?", architectures):
        number, kind = int(name[0]), name[1]
        if kind != "-virtual" and number // 10 == capability // 10 and number <= capability:
            return True
        if kind != "-real" and number <= capability:
            return True
    return False


def check_required(name: str, probe: Probe, window: str) -> Finding:
    install = f"pip install '{name.replace('_', '-')}{window}'"
    if not probe.is_there:
        return Finding(name, "broken", "not installed", install)
    if probe.error:
        return Finding(name, "broken", f"cannot be imported: {probe.error}", install)
    version = str(probe.found.get("version") or _installed(name))
    if not is_within(version, window):
        return Finding(name, "broken", f"{version}, outside of {window}", install)
    return Finding(name, "ok", f"{version} ({window})" if window else version)


def check_optional(name: str, probe: Probe, purpose: str) -> Finding:
    if not probe.is_there:
        return Finding(name, "ok", f"not installed; {purpose}")
    if probe.error:
        return Finding(name, "warn", f"cannot be imported: {probe.error}", f"mend or remove it; {purpose}")
    return Finding(name, "ok", str(probe.found["version"]))


def check_torchvision(probe: Probe) -> Finding:
    if not probe.is_there:
        return Finding("torchvision", "ok", "not installed; not needed")
    if probe.error:
        mend = "install the torchvision that goes with your torch, or remove it"
        return Finding("torchvision", "broken", f"cannot be imported: {probe.error}", mend)
    state = "a CUDA build beside a CPU torch: its operators are declared by diva_engine"
    return Finding("torchvision", "ok", probe.found["version"] + (f"; {state}" if probe.found["is_shimmed"] else ""))


def check_plain(windows: Mapping[str, str]) -> Finding:
    """Those of which the version alone is looked at."""
    wrong = [name for name in PLAIN if not (_installed(name) and is_within(_installed(name), windows.get(name, "")))]
    if not wrong:
        return Finding("other libraries", "ok", f"{len(PLAIN)} installed")
    wanted = " ".join(f"'{name}{windows.get(name, '')}'" for name in wrong)
    return Finding("other libraries", "broken", f"missing or of the wrong version: {', '.join(wrong)}",
                   f"pip install {wanted}")  # fmt: skip


def version_windows() -> dict[str, str]:
    """Name -> ">=a,<b" of what this package demands: as installed, else as pyproject.toml beside the source says."""
    try:
        lines = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        path = Path(__file__).resolve().parents[2] / "pyproject.toml"
        lines = tomllib.loads(path.read_text(encoding="utf-8"))["project"]["dependencies"] if path.is_file() else []
    required = [re.match(r"([\w-]+)\s*([^;\[\s]*)\s*$", line) for line in lines if "extra ==" not in line]
    # Some build tools write the bounds in another order: the lower one reads first.
    return {match[1].lower(): ",".join(sorted(match[2].split(","), reverse=True)) for match in required if match}


def is_within(version: str, window: str) -> bool:
    """Whether "5.19.0" lies within ">=5.16.1,<5.20"; local parts such as +cpu do not count."""
    checks = {">=": lambda a, b: a >= b, "<": lambda a, b: a < b, "==": lambda a, b: a == b, "!=": lambda a, b: a != b}
    found = _numbers(version)
    bounds = re.findall(r"(>=|==|!=|<)\s*([\d.]+)", window)
    return all(checks[sign](found, _numbers(bound)) for sign, bound in bounds)


def _numbers(version: str) -> tuple[int, ...]:
    """The release's numbers, without zeros at the end."""
    match = re.match(r"\d+(\.\d+)*", version)
    numbers = [int(part) for part in match[0].split(".")] if match else []
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


def _installed(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _failure(done: subprocess.CompletedProcess[str]) -> str:
    """The last line that says something, or how the process ended."""
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    if done.returncode < 0:
        return f"signal {-done.returncode}"
    return lines[-1][:200] if lines else f"exit code {done.returncode}"
