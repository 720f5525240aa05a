"""diva_engine: reinforcement-learning post-training of vision-language models at the difficulty the model needs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from diva_engine import torchvision_on_cpu

if TYPE_CHECKING:
    from diva_engine.algorithm.compute_advantage import compute_advantage as compute_advantage

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


def __getattr__(name: str) -> Any:
    """`diva_engine.compute_advantage` loads torch and the compiled ops when it is first asked for."""
    if name == "compute_advantage":
        from diva_engine.algorithm.compute_advantage import compute_advantage

        return compute_advantage
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
