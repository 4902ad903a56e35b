"""Steps as a policy sees them, made by hand."""

from __future__ import annotations

from typing import Any

import torch

from dllm.cache.policy import Step
from dllm.decoding.canvas import Canvas


def step_of(canvas: Canvas, **fields: Any) -> Step:
    """The first step of `canvas` in one window over all of each answer; `fields` replace some."""
    none = torch.zeros_like(canvas.known)
    usual: dict[str, Any] = {
        "canvas": canvas,
        "start": canvas.prompt,
        "end": canvas.length,
        "want": canvas.masked,
        "shift": 0,
        "index": torch.zeros_like(canvas.length),
        "changed": none,
        "confidence": none.float(),
        "live": none,
        "age": none.long(),
        "extra": {},
    }
    return Step(**(usual | fields))
