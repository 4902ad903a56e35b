"""Fast-dLLM's block-wise approximate caches (arXiv 2505.22618, section 3.2), with dInfer's margin.

Keys and values outside the queried span stay as they were when the window was entered: what is
committed meanwhile is not felt there. The error ends with the window.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from dllm.cache.policy import SINCE_ENTERED, Query, Refreshed, State, Step, due, entered
from dllm.decoding.state import Fields


@dataclass(frozen=True)
class Prefix(Refreshed):
    """Compute all when a window is entered, then from the window's start to the end.

    refresh: forwards of a window between two that compute all (none: only the first does).
    """

    paper: ClassVar[str] = "Fast-dLLM PrefixCache, arXiv 2505.22618"
    fields: ClassVar[Fields] = SINCE_ENTERED

    def query(self, step: Step, state: State) -> Query:
        whole = entered(step, state) | due(state["since"], self.refresh)
        start = np.where(whole, 0, step.start)
        return Query(step.between(start, step.canvas.length))


@dataclass(frozen=True)
class Dual(Refreshed):
    """Compute all when a window is entered, then the window alone.

    refresh: forwards of a window between two that compute all (none: only the first does).
    """

    paper: ClassVar[str] = "Fast-dLLM DualCache, arXiv 2505.22618"
    fields: ClassVar[Fields] = SINCE_ENTERED

    def query(self, step: Step, state: State) -> Query:
        whole = entered(step, state) | due(state["since"], self.refresh)
        return Query(step.window | (step.inside & whole[:, None]))
