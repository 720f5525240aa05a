"""How fast each method learns: three regimes, equal rollouts, several seeds. `python -m bench.learn` says more."""

import diva_engine  # noqa: F401 - before transformers: it lets torchvision be imported beside a CPU torch
