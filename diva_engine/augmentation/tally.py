"""What a run has done so far: questions, rejects by reason, tokens and what they cost."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from diva_engine.augmentation.journal import Outcome
from diva_engine.augmentation.prompts import Kind


@dataclass
class Tally:
    """Counts over outcomes, those of earlier runs in the journal included."""

    price_in: float = 0.0  # of a million tokens
    price_out: float = 0.0
    questions: Counter[Kind] = field(default_factory=Counter)  # answered, whether or not anything was accepted
    with_any: Counter[Kind] = field(default_factory=Counter)  # of these, with something accepted
    accepted: Counter[Kind] = field(default_factory=Counter)  # texts
    rejected: Counter[tuple[Kind, str]] = field(default_factory=Counter)  # texts by reason
    failed: Counter[str] = field(default_factory=Counter)  # questions by reason
    retried: Counter[str] = field(default_factory=Counter)  # attempts of this run by reason
    requests: int = 0
    uncounted: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def add(self, outcome: Outcome) -> None:
        self.requests += outcome.requests
        self.uncounted += outcome.uncounted
        self.prompt_tokens += outcome.prompt_tokens
        self.completion_tokens += outcome.completion_tokens
        self.rejected.update((outcome.kind, one.reason) for one in outcome.rejected)
        if outcome.failed:
            return
        self.questions[outcome.kind] += 1
        self.with_any[outcome.kind] += bool(outcome.accepted)
        self.accepted[outcome.kind] += len(outcome.accepted)

    @property
    def cost(self) -> float:
        return (self.prompt_tokens * self.price_in + self.completion_tokens * self.price_out) / 1e6

    def spent(self) -> str:
        """Tokens, and money where prices are known: "in 1,203 out 455 tokens, cost 0.0123"."""
        text = f"in {self.prompt_tokens:,} out {self.completion_tokens:,} tokens"
        if self.price_in or self.price_out:
            text += f", cost {self.cost:.4f}"
        return text

    def lines(self) -> list[str]:
        """The summary at the end of a run."""
        lines = []
        for kind, count in self.questions.items():
            lines.append(f"{kind}: {self.accepted[kind]} for {self.with_any[kind]} of {count} questions asked")
            reasons = [(reason, n) for (of, reason), n in self.rejected.most_common() if of == kind]
            lines += [f"  rejected {n}: {reason}" for reason, n in reasons]
        lines += [f"failed {n}: {reason}" for reason, n in self.failed.most_common(10)]
        lines += [f"retried {n}: {reason}" for reason, n in self.retried.most_common()]
        uncounted = f" ({self.uncounted} requests did not tell their tokens)" if self.uncounted else ""
        return [*lines, f"{self.requests} requests, {self.spent()}{uncounted}"]
