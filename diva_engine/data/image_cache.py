"""Originals, decoded and processed, kept by content: a question's variants and its next epoch ask for them again."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from PIL import Image
from torch import Tensor

from diva_engine.data.images import ImageSource

K = TypeVar("K")
V = TypeVar("V")


@dataclass(frozen=True)
class ProcessedImage:
    """One picture and what the image processor makes of it."""

    image: Image.Image
    pixel_values: Tensor  # [P, C * patch_size ** 2 * temporal_patch_size] float32
    grid: tuple[int, int, int]  # temporal, height, width in patches


class LruCache(Generic[K, V]):
    """The most recently used values whose sizes sum to at most `max_bytes`. Safe between threads."""

    def __init__(self, max_bytes: int, size_of: Callable[[V], int]) -> None:
        self._max_bytes = max_bytes
        self._size_of = size_of
        self._values: OrderedDict[K, V] = OrderedDict()
        self._lock = threading.Lock()
        self.num_bytes = 0

    def get(self, key: K, make: Callable[[], V]) -> V:
        """The value of `key`, made on first use. Two threads may make the same value at once; both are right."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key]
        value = make()
        with self._lock:
            if key not in self._values:
                self._values[key] = value
                self.num_bytes += self._size_of(value)
            while self.num_bytes > self._max_bytes:
                _, oldest = self._values.popitem(last=False)
                self.num_bytes -= self._size_of(oldest)
        return value


def content_key(source: ImageSource) -> str:
    """What tells two images apart: the hash of encoded bytes; of a file its path, size and time of change."""
    if isinstance(source, bytes):
        return hashlib.blake2b(source, digest_size=16).hexdigest()
    try:
        status = Path(source).stat()
    except OSError:
        return str(source)  # loading it will say what is wrong
    return f"{source}:{status.st_size}:{status.st_mtime_ns}"


def picture_bytes(image: Image.Image) -> int:
    return image.width * image.height * len(image.getbands())


def processed_bytes(processed: ProcessedImage) -> int:
    return picture_bytes(processed.image) + processed.pixel_values.nbytes
