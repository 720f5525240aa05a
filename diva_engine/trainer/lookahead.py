"""What the next step will probably ask, so that its prompts can be encoded while this one generates and learns."""

from __future__ import annotations

from collections.abc import Iterable

from diva_engine.algorithm.plans import PlanContext
from diva_engine.algorithm.recipes.recipe import Recipe
from diva_engine.records import Problem, Request, UserError


def probable_requests(recipe: Recipe, problems: Iterable[Problem], context: PlanContext) -> list[Request]:
    """The first requests of the plan, run on what the ledger holds now; a plan changes nothing before it has asked.

    A step does not meet the questions of the one before, so the guess fails only where an epoch begins or the plan
    draws more. Nothing is guessed where a row has changed on disk: the step that asks it will say so.
    """
    try:
        return next(recipe.plan(list(problems), context))
    except UserError:
        return []
