"""A recipe's plan, its stages answered by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from diva_engine.algorithm.difficulty import DifficultyLedger
from diva_engine.algorithm.plans import PlanContext, no_more_questions
from diva_engine.algorithm.recipes import find_recipe, recipe_defaults
from diva_engine.records import Credit, Problem
from diva_engine.settings import build_config
from python_tests.scored import answered


class PlanRun:
    """`requests` holds the open stage's requests; `groups` what the plan returned, once it has."""

    def __init__(self, name, problems, ledger=None, step=0, draw_more=no_more_questions, **settings) -> None:
        self.config = build_config({**recipe_defaults(name), "algorithm.adv_estimator": name, **settings})
        self.recipe = find_recipe(name)
        self.ledger = ledger or DifficultyLedger(self.config.difficulty)
        self.context = PlanContext(self.config, self.ledger, step, draw_more)
        self.plan = self.recipe.plan(problems, self.context)
        self.requests = next(self.plan)
        self.groups = None

    def answer(self, rewards: Mapping[str, Sequence[float]] | Sequence[float]) -> PlanRun:
        """Answers the stage: rewards by question, or one list for all, as many of them as each request asks."""
        groups = []
        for request in self.requests:
            found = rewards[request.variant.problem.id] if isinstance(rewards, Mapping) else rewards
            groups.append(answered(request, list(found[: request.num_rollouts])))
        try:
            self.requests = self.plan.send(groups)
        except StopIteration as done:
            self.requests, self.groups = [], done.value
        return self

    def credit(self) -> Credit:
        return self.recipe.credit(self.groups, self.config)


def numbered_problems(count: int, **columns) -> list[Problem]:
    return [Problem(id=f"q{i}", text="<image>?", answer="4", **columns) for i in range(count)]
