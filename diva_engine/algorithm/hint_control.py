"""How many solution steps a question is shown: more after failure, fewer after success; none while it rests."""

from __future__ import annotations

from dataclasses import dataclass, replace

from diva_engine.config import RescueConfig


@dataclass(frozen=True)
class HintState:
    """One question's hint."""

    num_steps: int = 0  # steps that the next hint shows; 0 before the first hint
    failures: int = 0  # hints of full length without success, in a row; from `patience` on: visits rested, too


def first_hint(state: HintState, most_steps: int) -> HintState:
    """A question's first hint is the longest."""
    return state if state.num_steps else HintState(most_steps)


def is_resting(state: HintState, settings: RescueConfig) -> bool:
    """Whether hints have failed so often that the question is left without one for now."""
    return state.failures >= settings.patience


def after_rest(state: HintState, settings: RescueConfig) -> HintState:
    """The state after a visit without a hint; after `rest` of them hints are tried anew."""
    failures = state.failures + 1
    return replace(state, failures=0 if failures >= settings.patience + settings.rest else failures)


def after_hint(state: HintState, most_steps: int, accuracy: float, settings: RescueConfig) -> HintState:
    """The state after hinted rollouts of which the share `accuracy` was right."""
    shown = min(state.num_steps, most_steps)
    if accuracy == 0:
        failures = state.failures + 1 if shown == most_steps else 0
        return HintState(min(most_steps, shown + max(1, (most_steps - shown + 1) // 2)), failures)
    if accuracy > settings.shorten_above:
        shown = max(1, shown - max(1, shown // 3))
    return HintState(shown)
