"""The ops' library needs neither Python nor torch's C++ interface, so that one binary serves all torch from 2.10 on."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from diva_engine.ops.library import LIBRARY


def undefined_symbols() -> list[str]:
    listed = subprocess.run(["nm", "-D", "-u", str(LIBRARY)], capture_output=True, text=True, check=True)
    return [line.split()[-1] for line in listed.stdout.splitlines()]


@pytest.mark.skipif(shutil.which("nm") is None, reason="nm (binutils) is not on PATH")
def test_needs_no_python_and_no_cpp_of_torch():
    symbols = undefined_symbols()
    assert [name for name in symbols if name.startswith(("Py", "_Py"))] == []
    unstable = ("_ZN2at", "_ZN3c10", "_ZN5torch", "_ZNK2at", "_ZNK3c10", "_ZNK5torch")
    assert [name for name in symbols if name.startswith(unstable)] == []
    assert any(name.startswith("aoti_torch_") for name in symbols)


@pytest.mark.skipif(shutil.which("torch-abi-audit") is None, reason="torch-abi-audit is not installed")
def test_the_audit_calls_it_stable():
    command = ["torch-abi-audit", "--check", "torch", str(LIBRARY)]
    audit = subprocess.run(command, capture_output=True, text=True, check=False)
    assert audit.returncode == 0, audit.stdout + audit.stderr
    assert "STABLE" in audit.stdout
    assert "UNSTABLE" not in audit.stdout
