"""FreeCache: what lies left of the window is frozen (FlashDLM, arXiv 2505.21467)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from dllm.cache.policy import Query, Refreshed, State, Step, due


@dataclass(frozen=True)
class FreezeLeft(Refreshed):
    """Compute all once, then from the window's start to the end.

    What the window has left behind is never computed again, but for the tokens committed in the
    last step: each is computed once as itself, since keys of a mask would else stand for it to the
    end (ours). With a shift of 1 neither is the token before the window frozen while it predicts.
    refresh: forwards of the row between two that compute all (none: only the first does).
    """

    paper: ClassVar[str] = "FreeCache (FlashDLM), arXiv 2505.21467"

    def query(self, step: Step, state: State) -> Query:
        whole = (step.index == 0) | due(step.index, self.refresh)
        start = np.where(whole, 0, step.start)
        fresh = step.changed & step.canvas.known & step.inside
        return Query(step.between(start, step.canvas.length) | fresh)
