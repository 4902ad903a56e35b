"""dKV-Cache: keys and values of a token are kept from one step after its commit on (2505.15781).

They move most when the mask becomes a token, so each token is an input once before it is cached.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from dllm.cache.policy import SINCE_ENTERED, PolicyBase, Query, State, Step, due, entered
from dllm.checks import check_choice, check_whole
from dllm.decoding.canvas import Array
from dllm.decoding.state import Fields


def settled(step: Step) -> Array:
    """[B, T] positions that were known one step ago and still are: those that are cached.

    With a shift of 1 the row of p predicts p + 1, so p settles when both are known (`un_right` of
    the released code; its other two choices freeze masks, or leave out rows that must predict).
    """
    known = ~step.inside | (step.canvas.known & ~step.changed)
    if step.shift:
        known[:, :-1] &= known[:, 1:]
    return known & step.inside


@dataclass(frozen=True)
class Delayed(PolicyBase):
    """Compute what was not known one step earlier; all in a window's first `first` forwards.

    first: 2 in the released loop for LLaDA, 1 in that for Dream. refresh: every refresh-th
    forward of a window computes all (none: no later one does). mode:
    "decode" is that; "pd" never computes the prompt again after the row's first forward; "prefill"
    does not either, and computes the whole answer in every forward.
    """

    paper: ClassVar[str] = "dKV-Cache-Decode, arXiv 2505.15781"
    fields: ClassVar[Fields] = SINCE_ENTERED
    refresh: int | None = 8
    mode: Literal["decode", "prefill", "pd"] = "decode"
    first: int = 2

    def __post_init__(self) -> None:
        check_whole("refresh", self.refresh, 1, none=True)
        check_whole("first", self.first, 1)
        check_choice("mode", self.mode, "decode", "prefill", "pd")

    def query(self, step: Step, state: State) -> Query:
        entered(step, state)
        whole = (state["since"] < self.first) | due(state["since"], self.refresh)
        if self.mode == "prefill":
            whole = np.ones_like(whole)
        pos = step.inside & (whole[:, None] | ~settled(step))
        if self.mode != "decode":  # the last row of the prompt predicts where there is a shift
            start = np.where(step.index == 0, 0, step.canvas.prompt - step.shift)
            pos &= step.between(start, step.canvas.length)
        return Query(pos)
