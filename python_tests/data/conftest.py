"""Imported before the test modules: transformers finds torchvision importable only after diva_engine was imported."""

import diva_engine  # noqa: F401
