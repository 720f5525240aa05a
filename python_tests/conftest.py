"""Tests whose hardware or package is missing skip themselves, whatever marks are asked for."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch


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
