"""Training recipes by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dllm.registry import Registry

if TYPE_CHECKING:
    from dllm.train.job import Recipe

HERE = "dllm.train"
RECIPES: Registry[Recipe] = Registry(
    "recipe",
    "dllm.recipes",
    {
        "mdlm": f"{HERE}.mdlm:Mdlm",
        "mini": f"{HERE}.mini.recipe:Mini",
        "ar": f"{HERE}.tiny_ar:Ar",
        "ar-to-block": f"{HERE}.ar_to_block:ArToBlock",
        "certainty": f"{HERE}.certainty:Certainty",
        "filter": f"{HERE}.filter:Filter",
        "drafter": f"{HERE}.drafter:DrafterAlignment",
        "markov": f"{HERE}.markov:Markov",
    },
)
