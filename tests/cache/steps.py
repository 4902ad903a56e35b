"""Steps as a policy sees them, made by hand."""

from __future__ import annotations

from typing import Any

import numpy as np

from dllm.cache.policy import CachePolicy, State, Step
from dllm.decoding.canvas import Canvas
from dllm.decoding.state import HostState


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


def fresh(policy: CachePolicy, canvas: Canvas) -> State:
    """What a policy keeps of rows that begin with `canvas`."""
    return HostState.fresh(policy.fields, *canvas.ids.shape).values
