"""Advantage estimators for verl: `register()` makes `algorithm.adv_estimator=diva` and `=durian` known to it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from diva_engine import compute_advantage
from diva_engine.records import UserError

ESTIMATORS = ("diva", "durian")


def register(preset: str = "paper", settings: Mapping[str, Mapping[str, Any]] | None = None) -> None:
    """Adds diva and durian to verl's registry; call it in the process that computes the advantages.

    Args:
        preset: diva's: `paper` or `authors`.
        settings: by estimator, what `compute_advantage` takes as settings, as {"diva": {"k": 0.2}}.

    Raises:
        ImportError: verl is not installed.
        ValueError: verl's, where another estimator has the name already, or the same one with other settings.
    """
    try:
        from verl.trainer.ppo.core_algos import register_adv_est
    except ImportError as error:
        raise ImportError(f"diva_engine.integrations.verl needs verl, which does not import: {error}") from error
    settings = settings or {}
    for name in settings:
        if name not in ESTIMATORS:
            raise UserError(f"settings are for {' or '.join(ESTIMATORS)}, not for {name}")
    register_adv_est("diva")(Estimator("diva", preset, dict(settings.get("diva", {}))))
    register_adv_est("durian")(Estimator("durian", "paper", dict(settings.get("durian", {}))))


@dataclass(frozen=True)
class Estimator:
    """What verl calls: rewards a token in, advantages a token out."""

    algorithm: str
    preset: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __call__(
        self,
        token_level_rewards: Tensor,  # [N, L]
        response_mask: Tensor,  # [N, L]
        index: Any = None,  # [N] verl's uid: one a prompt
        config: Any = None,
        *,
        question_ids: Any = None,  # [N]
        difficulty: Any = None,  # [N]
        visual_entropy: Any = None,  # [N]
        old_log_probs: Tensor | None = None,  # [N, L]
        **others: Any,
    ) -> tuple[Tensor, Tensor]:  # [N, L] twice: advantages and returns, as verl's own outcome estimators
        """The rollout's advantage on each of its tokens, 0 on padding.

        verl's own trainers hand over `index` alone: diva then takes every prompt for a question, which is DIVA without
        variants, and says so once. A trainer that has them passes `question_ids` and `difficulty` too.
        """
        if index is None:
            raise UserError(f"adv_estimator={self.algorithm} needs verl's uid, one a prompt")
        settings = dict(self.settings)
        if self.algorithm == "diva" and question_ids is None:
            warnings.warn(
                "adv_estimator=diva was given no question_ids: every prompt is taken for a question", stacklevel=2
            )
            question_ids, settings["weight"] = index, "none"
        advantage = compute_advantage(
            self.algorithm,
            token_level_rewards.detach().sum(dim=-1),
            index,
            question_ids,
            difficulty,
            self.preset,
            lengths=response_mask.sum(dim=-1),
            max_length=response_mask.shape[-1],
            visual_entropy=visual_entropy,
            logprobs=None if old_log_probs is None else (old_log_probs * response_mask).sum(dim=-1),
            **settings,
        )
        spread = advantage.to(response_mask.device)[:, None] * response_mask
        return spread, spread
