"""Steps as a policy sees them, made by hand."""

from __future__ import annotations

from typing import Any

import numpy as np

from dllm.cache.policy import Step
from dllm.decoding.canvas import Canvas


def step_of(canvas: Canvas, **fields: Any) -> Step:
    """The first step of `canvas` in one window over all of each answer; `fields` replace some."""
    none = np.zeros_like(canvas.known)
    usual: dict[str, Any] = {
        "canvas": canvas,
        "start": canvas.prompt,
        "end": canvas.length,
        "want": canvas.masked,
        "shift": 0,
        "index": np.zeros_like(canvas.length),
        "changed": none,
        "confidence": none.astype(np.float32),
        "live": none,
        "age": none.astype(np.int64),
    }
    return Step(**(usual | fields))
