"""The algorithms, each a recipe of three choices: plan, credit, loss. A new one is a file here and a line in
RECIPES."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from diva_engine.algorithm.recipes import (
    cispo,
    dapo,
    diva,
    dr_grpo,
    durian,
    gold,
    grpo,
    gspo,
    hint_grpo,
    rescue,
    rloo,
    sapo,
)
from diva_engine.algorithm.recipes.recipe import Recipe
from diva_engine.records import UserError

RECIPES: Mapping[str, Recipe] = {
    "grpo": grpo.RECIPE,
    "dr_grpo": dr_grpo.RECIPE,
    "rloo": rloo.RECIPE,
    "dapo": dapo.RECIPE,
    "gspo": gspo.RECIPE,
    "cispo": cispo.RECIPE,
    "sapo": sapo.RECIPE,
    "diva": diva.RECIPE,
    "durian": durian.RECIPE,
    "durian_dapo": durian.ON_DAPO,
    "hint_grpo": hint_grpo.RECIPE,
    "rescue": rescue.RECIPE,
    "gold": gold.RECIPE,
}


def find_recipe(name: str) -> Recipe:
    if name not in RECIPES:
        nearest = difflib.get_close_matches(name, RECIPES, n=1, cutoff=0.0)[0]
        raise UserError(f"algorithm={name} is not a recipe; did you mean {nearest}? ({', '.join(RECIPES)})")
    return RECIPES[name]


def recipe_defaults(name: str, preset: str = "paper") -> Mapping[str, Any]:
    """The settings that a recipe presets, as {"section.name": value}: its paper's, or those of its authors' code."""
    recipe = find_recipe(name)
    if preset == "paper":
        return recipe.defaults
    if preset != "authors":
        raise UserError(f"preset={preset} is none; take one of paper, authors")
    if not recipe.authors_defaults:
        having = ", ".join(other for other, known in RECIPES.items() if known.authors_defaults)
        raise UserError(f"preset=authors is not known for algorithm={name}, only for {having}; leave it out")
    return {**recipe.defaults, **recipe.authors_defaults}
