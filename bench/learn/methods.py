"""The methods: each a recipe of the engine and the settings with which it enters the comparison.

All generate at most so many rollouts a step, 128 or half of that. What a method costs beyond plain rollouts (variants,
hints, probes, refills) comes out of these, so it poses fewer questions a step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

ROLLOUTS_PER_STEP = 128
N = 8  # answers a prompt

COMMON: Mapping[str, Any] = {
    "worker.rollout.n": N,
    "data.max_prompt_length": 256,
    "data.max_response_length": 64,
    "variants.rotation_degrees_per_strength": 30,  # the demo's model reads tiles turned by 13 degrees, not by 45
    "data.prefetch": 0,  # all of a run's work in one thread, whose processor time is counted
    "trainer.logger": [],
    "trainer.device": "cpu",
    "hint.inject": "answer",
}


@dataclass(frozen=True)
class Method:
    """A recipe with its settings. `questions` is how many it poses a step of 128 rollouts."""

    recipe: str
    questions: int = ROLLOUTS_PER_STEP // N
    settings: Mapping[str, Any] = field(default_factory=dict)
    reads_references: bool = False

    def questions_at(self, rollouts_per_step: int) -> int:
        """How many questions it poses a step of so many rollouts."""
        return self.questions * rollouts_per_step // ROLLOUTS_PER_STEP

    def but(self, **settings: Any) -> Method:
        """The same method with settings changed; a double underscore stands for the dot in their names."""
        changed = {name.replace("__", "."): value for name, value in settings.items()}
        return Method(self.recipe, self.questions, {**self.settings, **changed}, self.reads_references)


GRPO = Method("grpo")
DURIAN = Method("durian")
RESCUE = Method("rescue", reads_references=True)
DIVA = Method("diva", questions=8, reads_references=True)  # a question is posed twice: as it is, and one variant

METHODS: Mapping[str, Method] = {
    "grpo": GRPO,
    "dr_grpo": Method("dr_grpo"),
    # As many refills as the rollouts allow: eight live groups are sought, among at most sixteen questions.
    "dapo": Method("dapo", questions=8, settings={"dapo.max_draws": 2}),
    "gspo": Method("gspo"),
    "durian": DURIAN,
    "hint_grpo": Method("hint_grpo", questions=5, reads_references=True),  # up to three prompts a question
    "diva": DIVA,
    "diva_n3": Method("diva", questions=4, settings={"variants.num": 3}, reads_references=True),
    "diva_prompt": DIVA.but(hint__inject="question"),
    "diva_n3_prompt": Method(
        "diva", questions=4, settings={"variants.num": 3, "hint.inject": "question"}, reads_references=True
    ),
    "rescue": RESCUE,
    "gold": Method("gold", reads_references=True),
    # Ablations.
    "diva_no_variants": Method("diva", questions=16, settings={"variants.num": 0}),
    "diva_no_weight": DIVA.but(advantage__weight="none"),
    "diva_no_rrb": DIVA.but(advantage__rrb="none"),
    "diva_no_balance": DIVA.but(advantage__balance="none", advantage__w_local=0.0),
    "grpo_rrb": GRPO.but(advantage__rrb="range"),
    "durian_perceptual": DURIAN.but(durian__w_reasoning=0.0, durian__w_original=0.8),
    "durian_reasoning": DURIAN.but(durian__w_perceptual=0.0, durian__w_original=0.8),
    "rescue_no_prefix_credit": RESCUE.but(rescue__beta=0.0),
    "rescue_no_hints": Method("rescue", settings={"rescue.hints": False}),
    "rescue_no_probe": RESCUE.but(rescue__dead_by="last_visit"),
    "rescue_prompt": RESCUE.but(hint__inject="question"),
    "rescue_full_probe": RESCUE.but(rescue__probe_solved=4),
    "rescue_rest": RESCUE.but(difficulty__rest_solved=16),
    "grpo_rest": GRPO.but(difficulty__rest_solved=16),
}
