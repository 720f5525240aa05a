"""What every fuzz test is given: a cache of its own, and how much to try."""

from __future__ import annotations

import datasets
import pytest

from python_tests.fuzz_budget import Budget


@pytest.fixture(autouse=True)
def _cache_of_its_own(tmp_path_factory, monkeypatch):
    """Arrow copies of test files stay out of the user's cache."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


@pytest.fixture
def budget(request):
    """With `--fuzz-seconds S` each test that draws its inputs at random goes on for S seconds."""
    return Budget(request.config.getoption("--fuzz-seconds"), request.config.getoption("--fuzz-seed"))
