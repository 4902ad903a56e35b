"""dInfer's vicinity refresh: the window and what lies near it (arXiv 2510.08666)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dllm.cache.policy import SINCE_ENTERED, PolicyBase, Query, State, Step, due, entered
from dllm.checks import check_whole
from dllm.decoding.state import Fields


@dataclass(frozen=True)
class Vicinity(PolicyBase):
    """Compute all when a window is entered, then the window with a margin on both sides.

    before, after: tokens of the margin left and right of the window. warmup: forwards at the row's
    very start that compute all. refresh: forwards of a window between two that compute all (none:
    only the first does). Where the released loop runs a second forward over the window after one
    that computes all, we use the predictions of the first.
    """

    paper: ClassVar[str] = "dInfer, arXiv 2510.08666"
    fields: ClassVar[Fields] = SINCE_ENTERED
    before: int = 16
    after: int = 16
    warmup: int = 4
    refresh: int | None = None

    def __post_init__(self) -> None:
        for name in ("before", "after", "warmup"):
            check_whole(name, getattr(self, name), 0)
        check_whole("refresh", self.refresh, 1, none=True)

    def query(self, step: Step, state: State) -> Query:
        whole = entered(step, state) | due(state["since"], self.refresh)
        whole |= step.index < self.warmup
        near = step.between(step.start - self.before, step.end + self.after)
        return Query(near | (step.inside & whole[:, None]))
