"""Transformers' own progress bars, which would be drawn through the trainer's live table."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from transformers.utils import logging as transformers_logging


@contextlib.contextmanager
def without_progress_bars() -> Iterator[None]:
    """Transformers draws bars on stderr for loads and saves, through the trainer's own live table."""
    were_shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if were_shown:
            transformers_logging.enable_progress_bar()
