"""Tests whose hardware or package is missing skip themselves, whatever marks are asked for."""

from __future__ import annotations

import signal
from importlib.util import find_spec

import pytest
import torch

import diva_engine  # noqa: F401 - before any test module: then transformers finds torchvision beside a CPU torch
from python_tests.fuzz_budget import TRIED


def pytest_configure() -> None:
    """A shell's background job begins with SIGINT ignored, and so would every process that the tests start."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fuzz-seconds", type=float, help="go on with each test that draws its inputs for so long")
    parser.addoption("--fuzz-seed", type=int, default=0, help="what those tests draw")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for kind, count in sorted(TRIED.items()):
        terminalreporter.write_line(f"tried: {count} {kind}")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = {}
    if not torch.cuda.is_available():
        missing["gpu"] = "there is no CUDA device"
    if find_spec("vllm") is None:
        missing["vllm"] = "vllm is not installed"
    for item in items:
        for mark, reason in missing.items():
            if item.get_closest_marker(mark) is not None:
                item.add_marker(pytest.mark.skip(reason=reason))
