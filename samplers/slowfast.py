"""SlowFast: find out how far the model sees, then go that far in parallel (arXiv 2506.10848)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from dllm.checks import check_probability, check_whole
from dllm.decoding.canvas import Canvas, Windows
from dllm.decoding.state import Fields, StateField
from dllm.samplers.candidates import Candidates
from dllm.samplers.protocols import HostState, PlannerBase, State


@dataclass(frozen=True)
class SlowFast(PlannerBase):
    """Cycles of a slow phase and a fast one.

    Slow: every step commits the most confident candidate of the rest of the row, whatever the rule,
    and notes the span: up to the farthest candidate of confidence `reach` or more. After `explore`
    steps, or when the last two spans are of stable length, fast: the rule decides inside the last
    span until that is full (the paper's rule is Fast-dLLM's threshold 0.9). A span without a masked
    position left starts the next cycle at once.

    Stable: LLaDA's released code wants a standard deviation of the last two lengths below 1,
    Dream's a variance below 1. For two whole numbers both say that they differ by at most 1, with
    either estimator. Lengths count from the cycle's first masked position. block_length: blocks a
    cycle does not leave (None, as published: the whole row).
    """

    paper: ClassVar[str] = "SlowFast Sampling, arXiv 2506.10848"
    narrows: ClassVar[bool] = True
    # start (-1: to be found) and end of the phase's window, whether it is slow, its slow steps, the
    # end of the last span
    fields: ClassVar[Fields] = {
        "start": StateField(-1),
        "end": StateField(-1),
        "slow": StateField(False, "bool"),
        "tried": StateField(0),
        "span": StateField(0),
    }
    block_length: int | None = None
    explore: int = 6
    reach: float = 0.3

    def __post_init__(self) -> None:
        check_whole("block_length", self.block_length, 1, none=True)
        check_whole("explore", self.explore, 1)
        check_probability("reach", self.reach)

    def windows(self, canvas: Canvas, state: HostState) -> Windows:
        """Slow: from the first masked position to the end of the row or block. Fast: the span."""
        first, limit = canvas.first_masked(), canvas.length
        if self.block_length is not None:
            blocks = (first - canvas.prompt) // self.block_length + 1
            limit = np.minimum(canvas.prompt + blocks * self.block_length, limit)
        fresh = first >= state["end"]
        state["start"] = np.where(fresh | (state["start"] < 0), first, state["start"])
        state["end"] = np.where(fresh, limit, np.minimum(state["end"], canvas.length))
        state["slow"] = state["slow"] | fresh
        state["tried"] = np.where(fresh, 0, state["tried"])
        return Windows(state["start"], state["end"])

    def narrow(self, view: Candidates, state: State) -> tuple[Tensor, Tensor]:
        """One position where the phase is slow; ends the phase where the span is stable."""
        start, end, slow = view.start, view.end, state["slow"]
        best = torch.where(view.surest(), view.pos, -1).amax(1)
        far = torch.where(view.valid & (view.conf >= self.reach), view.pos + 1, 0).amax(1)
        span = torch.maximum(far, start)
        tried = state["tried"] + 1
        stable = (tried > 1) & ((span - state["span"]).abs() <= 1)
        done = slow & (stable | (tried >= self.explore))
        state["tried"], state["span"] = tried, span
        state["slow"] = slow & ~done
        # The fast window starts at the first masked position that this step leaves: a start no
        # window had.
        state["start"] = start.masked_fill(done, -1)
        state["end"] = torch.where(done, span, end)
        return torch.where(slow, best, start), torch.where(slow, best + 1, end)
