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
    """The state after a visit without a hint; after `rest` of them one more hint is tried, and if it fails too the
    question rests again: references that never help cost one visit in `rest` + 1."""
    failures = state.failures + 1
    has_rested = failures >= settings.patience + settings.rest
    return replace(state, failures=settings.patience - 1 if has_rested else failures)


def after_hint(state: HintState, most_steps: int, accuracy: float, settings: RescueConfig) -> HintState:
    """The state after hinted rollouts of which the share `accuracy` was right."""
    shown = min(state.num_steps, most_steps)
    if accuracy == 0:
        failures = state.failures + 1 if shown == most_steps else 0
        return HintState(min(most_steps, shown + max(1, (most_steps - shown + 1) // 2)), failures)
    if accuracy > settings.shorten_above:
        shown = max(1, shown - max(1, shown // 3))
    return HintState(shown)
