"""Runs a skipped batch again, example by example, and shows which of them is not finite.

python -m diva_engine.replay runs/grpo_seed1/skipped_batches/step_12.pt                  on the run's newest checkpoint
python -m diva_engine.replay runs/grpo_seed1/skipped_batches/step_12.pt --model FOLDER   on other weights
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from diva_engine.algorithm.recipes import find_recipe, recipe_defaults
from diva_engine.records import UserError
from diva_engine.settings import load_config
from diva_engine.trainer.batches import Batch
from diva_engine.trainer.checkpoint import list_checkpoints
from diva_engine.trainer.gradient import GradientPass
from diva_engine.trainer.master_weights import MasterWeights
from diva_engine.trainer.policies import load_whole_policy
from diva_engine.trainer.skipped_batches import load_batch


@dataclass(frozen=True)
class Replayed:
    """What one example gives by itself, its loss divided as in the whole batch."""

    name: str  # question/variant
    num_tokens: int
    loss: float
    grad_norm: float
    broken: tuple[str, ...]  # what was not finite before any forward pass

    @property
    def is_finite(self) -> bool:
        return math.isfinite(self.loss) and math.isfinite(self.grad_norm)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m diva_engine.replay", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("batch", type=Path, help="a file of the run's skipped_batches")
    parser.add_argument("--model", default="", help="folder of other weights")
    options = parser.parse_args(arguments)
    try:
        rows = list(replay(options.batch, options.model))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{'question/variant':24} {'tokens':>7} {'loss':>12} {'gradient':>12}")
    for row in rows:
        mark = "" if row.is_finite else f"  <- not finite{''.join(f', nor its {name}' for name in row.broken)}"
        print(f"{row.name:24} {row.num_tokens:7} {row.loss:12.4g} {row.grad_norm:12.4g}{mark}")
    return 0


def replay(path: Path, model: str = "") -> Iterator[Replayed]:
    """Each example of the batch by itself, on the run's newest checkpoint or on `model`."""
    batch, run_dir = load_batch(path), path.resolve().parent.parent
    words = [f"config={run_dir / 'config.yaml'}", *([f"worker.actor.model.model_path={model}"] if model else [])]
    config = load_config(words, recipe_defaults)
    checkpoints = [] if model else list_checkpoints(run_dir)
    policy = load_whole_policy(config, checkpoints[-1] if checkpoints else None)
    weights = MasterWeights(p for p in policy.model.parameters() if p.requires_grad)
    loss = find_recipe(config.algorithm.adv_estimator).loss
    gradient_pass = GradientPass(policy, loss, config, weights)
    for example in batch.examples:
        alone = Batch([example], batch.num_tokens, batch.num_rollouts)
        value, _ = gradient_pass.run(alone, config.worker.actor.micro_batch_tokens)
        norm = torch.nn.utils.get_total_norm([w.grad for w in weights.masters if w.grad is not None])
        columns = {"credit": example.advantage, "starting log-probability": example.ref_logprob}
        broken = tuple(name for name, column in columns.items() if column is not None and not column.isfinite().all())
        yield Replayed(example.name, len(example.advantage), value, float(norm), broken)


if __name__ == "__main__":
    sys.exit(main())
