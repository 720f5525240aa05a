"""Imported before the test modules: transformers finds torchvision importable only after diva_engine was imported."""

import datasets
import pytest

import diva_engine  # noqa: F401


@pytest.fixture(autouse=True)
def _cache_of_its_own(tmp_path_factory, monkeypatch):
    """Arrow copies of test files stay out of the user's cache."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
