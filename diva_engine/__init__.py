"""diva_engine: reinforcement-learning post-training of vision-language models at the difficulty the model needs."""

from __future__ import annotations

from diva_engine import torchvision_on_cpu

__version__ = "0.1.0"

torchvision_on_cpu.install()


def build_info() -> dict[str, str | None]:
    """What was compiled: version, commit, compiler, torch, CUDA (None for a CPU build) and its architectures."""
    try:
        from diva_engine import _C
    except ImportError as error:
        message = "diva_engine's compiled half is not built. Run `pip install .` in the source tree."
        raise ImportError(message) from error
    return _C.build_info()
