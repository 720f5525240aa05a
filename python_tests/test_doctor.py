"""The doctor speaks of whatever is there: nothing that is missing, broken or hostile silences it."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from diva_engine.doctor.libraries import (
    Probe,
    check_ops,
    check_optional,
    check_required,
    check_torch,
    check_torchvision,
    is_within,
    run_probe,
    runs_on,
    version_windows,
)
from diva_engine.doctor.machine import check_disk, check_driver, check_limits, check_port, check_shared_memory

ROOT = Path(__file__).parents[1]


def examine(*arguments, path=(), **environment):
    """The doctor in a process of its own, with further folders before all others on the path."""
    places = os.pathsep.join([*map(str, path), str(ROOT)])
    return subprocess.run(
        [sys.executable, "-m", "diva_engine.doctor", *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env=os.environ | {"PYTHONPATH": places} | environment,
    )


def test_this_machine_is_well():
    done = examine("--json")
    report = json.loads(done.stdout)
    verdicts = {finding["name"]: finding["verdict"] for finding in report["findings"]}
    wanted = {"Python", "NVIDIA driver", "memory", "runs", "Hugging Face cache", "temporary files", "shared memory",
              "loopback", "MASTER_PORT", "limits", "torch", "torch's CUDA", "compiled ops", "transformers",
              "torchvision", "vllm", "flash_attn", "math_verify", "other libraries"}  # fmt: skip
    assert wanted <= verdicts.keys()
    assert verdicts["compiled ops"] != "broken"
    assert done.returncode == int("broken" in verdicts.values())
    assert report["verdict"] == ("broken" if done.returncode else "warn" if "warn" in verdicts.values() else "ok")


FAKES = {
    "transformers": "raise ImportError('no module named nothing_at_all')",
    "math_verify": "import os; os.kill(os.getpid(), 11)",
    "vllm": "raise SystemExit(3)",
    "flash_attn": "__version__ = '2.8'",  # without its kernels
}


def test_broken_packages_are_named_with_their_mends(tmp_path):
    """Fakes before the real ones on the path; torch and the compiled ops are missing altogether."""
    for name, code in FAKES.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(code)
    (tmp_path / "torch.py").write_text("raise OSError('libcudart.so.13: cannot open shared object file')")
    done = examine(path=[tmp_path])
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    lines = {line[8:].split("  ")[0].strip(): line for line in done.stdout.splitlines()}
    told = {
        "torch": ("broken", "OSError: libcudart.so.13: cannot open shared object file"),
        "compiled ops": ("broken", "OSError: libcudart.so.13"),
        "transformers": ("broken", "ImportError: no module named nothing_at_all"),
        "torchvision": ("broken", "OSError: libcudart.so.13"),
        "math_verify": ("broken", "signal 11"),
        "vllm": ("warn", "exit code 3"),
        "flash_attn": ("warn", "flash_attn_varlen_func"),
        "Python": ("ok", sys.executable),
    }
    for name, (verdict, words) in told.items():
        assert lines[name].startswith(verdict), lines[name]
        assert words in lines[name]
    assert "-> pip install 'transformers>=" in done.stdout
    assert "-> pip install . in the source tree" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("5 broken, ")


def test_it_runs_on_the_standard_library_alone():
    program = "import sys; sys.modules['torch'] = None; sys.modules['PIL'] = None; import diva_engine.doctor.__main__"
    subprocess.run([sys.executable, "-S", "-c", program], check=True, env={"PYTHONPATH": str(ROOT)})


def test_ops_that_are_not_built_are_named_with_the_command_to_run(monkeypatch, tmp_path):
    shutil.copytree(ROOT / "diva_engine", tmp_path / "diva_engine", ignore=shutil.ignore_patterns("*.so"))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    finding = check_ops(run_probe("ops"), Probe(False, {}))
    assert (finding.verdict, "not built" in finding.value) == ("broken", True)
    assert finding.mend == "pip install . in the source tree (or python setup.py build_ext --inplace to work in it)"


def test_a_probe_that_hangs_is_given_up(monkeypatch, tmp_path):
    (tmp_path / "vllm.py").write_text("import time; time.sleep(99)")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(ROOT)]))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("diva_engine.doctor.libraries.TIME_LIMIT_S", 2.0)
    assert run_probe("vllm").error == "its import did not end within 2 s"


VERSIONS = {
    "inside": ("5.19.0", ">=5.16.1,<5.20", True),
    "the lowest": ("5.16.1", ">=5.16.1,<5.20", True),
    "the first beyond": ("5.20.0", ">=5.16.1,<5.20", False),
    "too old": ("5.9", ">=5.16.1,<5.20", False),
    "a local part": ("2.13.0+cu130", ">=2.10", True),
    "exactly": ("2.13.0+cpu", "==2.13", True),
    "no window": ("0.1", "", True),
}


@pytest.mark.parametrize(("version", "window", "expected"), VERSIONS.values(), ids=VERSIONS)
def test_versions_are_compared_number_by_number(version, window, expected):
    assert is_within(version, window) is expected


def test_the_windows_are_those_of_pyproject():
    windows = version_windows()
    assert windows["torch"] == ">=2.10"
    assert windows["transformers"].startswith(">=5.")
    assert "pytest" not in windows


ARCHITECTURES = {
    "the same": ("80-real;90-real", 90, True),
    "a newer minor of the same major": ("80-real", 86, True),
    "an older minor": ("89-real", 80, False),
    "an older GPU": ("80-real;90-real", 75, False),
    "a newer major without PTX": ("80-real;90-real", 120, False),
    "a newer major with PTX": ("80-real;120", 121, True),
    "PTX alone": ("80-virtual", 90, True),
}


@pytest.mark.parametrize(("architectures", "capability", "expected"), ARCHITECTURES.values(), ids=ARCHITECTURES)
def test_which_gpus_the_ops_run_on(architectures, capability, expected):
    assert runs_on(architectures, capability) is expected


GPU = {"name": "X", "capability": 90, "free_gib": 79.0, "total_gib": 80.0, "is_right": True}
OPS = {"commit": "c", "built_against_torch": "2.13", "cuda": "13.0", "cuda_architectures": "80-real",
       "compiled_at_run_time": False, "devices": []}  # fmt: skip


def torch_with(*gpus):
    return Probe(True, {"version": "2.13.0", "cuda": "13.0", "gpus": gpus})


OLD = Probe(True, {"version": "4.57"})
CASES = {
    "ops for another GPU": (lambda: check_ops(Probe(True, OPS), torch_with(GPU)), "broken", 'ARCH_LIST="9.0"'),
    "ops for this GPU": (lambda: check_ops(Probe(True, OPS | {"cuda_architectures": "90"}), torch_with(GPU)), "ok", ""),
    "ops without CUDA": (lambda: check_ops(Probe(True, OPS | {"cuda": None}), torch_with(GPU)), "warn", "nvcc"),
    "ops not built": (lambda: check_ops(Probe(True, {}, "ImportError"), torch_with()), "broken", "pip install ."),
    "a busy GPU": (lambda: check_torch(torch_with(GPU | {"free_gib": 3.0}), "")[-1], "warn", "nvidia-smi"),
    "a broken GPU": (lambda: check_torch(torch_with(GPU | {"is_right": False}), "")[-1], "broken", "out of use"),
    "an old transformers": (lambda: check_required("transformers", OLD, ">=5.16"), "broken", "'transformers>=5.16'"),
    "a missing library": (lambda: check_required("torch", Probe(False, {}), ">=2.10"), "broken", "'torch>=2.10'"),
    "a missing optional one": (lambda: check_optional("vllm", Probe(False, {}), "needed for x only"), "ok", ""),
    "torchvision shimmed": (
        lambda: check_torchvision(Probe(True, {"version": "0.28", "is_shimmed": True})), "ok", ""
    ),
    "a full disk": (lambda: check_disk("runs", Path("/dev/full/x")), "broken", "trainer.save_checkpoint_path"),
    "no shared memory": (lambda: check_shared_memory(Path("/no/such")), "warn", "--shm-size"),
}  # fmt: skip


@pytest.mark.parametrize(("check", "verdict", "mend"), CASES.values(), ids=CASES)
def test_each_finding_has_its_verdict_and_its_mend(check, verdict, mend):
    finding = check()
    assert finding.verdict == verdict, finding
    assert mend in finding.mend
    assert bool(finding.mend) == (verdict != "ok")


def test_a_port_in_use_is_seen(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("MASTER_PORT", str(server.getsockname()[1]))
        finding = check_port()
    assert (finding.verdict, "Address already in use" in finding.value) == ("warn", True)
    assert check_port().verdict == "ok"
    monkeypatch.setenv("MASTER_PORT", "99999")
    assert check_port().verdict == "broken"


def test_a_driver_that_fails_is_seen(monkeypatch, tmp_path):
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\nexit 9\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert (check_driver().verdict, "reboot" in check_driver().mend) == ("broken", True)
    program.write_text("#!/bin/sh\necho 580.65.06\necho 580.65.06\n")
    assert (check_driver().verdict, check_driver().value) == ("ok", "580.65.06, 2 GPUs")


def test_small_limits_are_seen():
    program = "from diva_engine.doctor.machine import check_limits; print(check_limits().verdict, check_limits().mend)"
    command = f'ulimit -n 64; exec "{sys.executable}" -c "{program}"'
    done = subprocess.run(
        ["sh", "-c", command], capture_output=True, text=True, check=True, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    assert done.stdout == "warn ulimit -n 1024 or more\n"
    assert check_limits().name == "limits"
