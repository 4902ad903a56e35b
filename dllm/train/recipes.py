"""The recipes by name; each is a dataclass of knobs ("name:key=value")."""

from __future__ import annotations

from dllm.registry import build_part
from dllm.train.job import Recipe

HERE = "dllm.train"
GROUP = "dllm.recipes"
RECIPES = {
    "mdlm": f"{HERE}.mdlm:Mdlm",
    "ar": f"{HERE}.tiny_ar:Ar",
    "ar-to-block": f"{HERE}.ar_to_block:ArToBlock",
    "certainty": f"{HERE}.certainty:Certainty",
    "filter": f"{HERE}.filter:Filter",
    "drafter": f"{HERE}.drafter:DrafterAlignment",
    "markov": f"{HERE}.markov:Markov",
}


def build_recipe(spec: str) -> Recipe:
    """The recipe that a spec names; SpecError says what is wrong with it."""
    recipe: Recipe = build_part(spec, RECIPES, GROUP)
    return recipe
