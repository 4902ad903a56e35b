"""Drafts verified by an autoregressive target, whose own output they never change.

    engine = dllm.verify.load("tiny-ar", "tiny")         # target, drafter
    print(engine.generate("Reverse the list: pear, fig, plum").text)

    target.generate(**inputs, custom_generate=dllm.verify.generate, drafter=...)     # transformers

Names are imported on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if __name__ != "dllm.verify":
    raise ImportError("this folder is dllm.verify: import it under that name")

if TYPE_CHECKING:
    from dllm.integrations.custom_generate import generate
    from dllm.verify.api import load, load_drafter
    from dllm.verify.config import SpecConfig
    from dllm.verify.draft.drafter import ModelDrafter
    from dllm.verify.engine import SpecEngine
    from dllm.verify.output import SpecOutput
    from dllm.verify.target.model import HFTarget

_HOME = {
    "load": "dllm.verify.api",
    "load_drafter": "dllm.verify.api",
    "SpecConfig": "dllm.verify.config",
    "ModelDrafter": "dllm.verify.draft.drafter",
    "SpecEngine": "dllm.verify.engine",
    "SpecOutput": "dllm.verify.output",
    "generate": "dllm.integrations.custom_generate",
    "HFTarget": "dllm.verify.target.model",
}

__all__ = [
    "HFTarget",
    "ModelDrafter",
    "SpecConfig",
    "SpecEngine",
    "SpecOutput",
    "generate",
    "load",
    "load_drafter",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'dllm.verify' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
