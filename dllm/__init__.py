"""dllm: parallel decoding of masked-diffusion language models.

    engine = dllm.load("tiny")                       # or a hub id, or a directory
    out = engine.generate("Reverse the list: pear, fig, plum", sampler="threshold:threshold=0.9")
    print(out.text, out.nfe, out.tokens_per_forward)

Names are imported on first use, so that `import dllm` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dllm.api import load
    from dllm.config import DecodeConfig
    from dllm.engine import Engine
    from dllm.errors import DllmError
    from dllm.output import Commit, Event, Finished, Output, Started

__version__ = "0.1.0"

_HOME = {
    "load": "dllm.api",
    "DecodeConfig": "dllm.config",
    "Engine": "dllm.engine",
    "DllmError": "dllm.errors",
    "Commit": "dllm.output",
    "Event": "dllm.output",
    "Finished": "dllm.output",
    "Output": "dllm.output",
    "Started": "dllm.output",
}

__all__ = [
    "Commit",
    "DecodeConfig",
    "DllmError",
    "Engine",
    "Event",
    "Finished",
    "Output",
    "Started",
    "load",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'dllm' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
