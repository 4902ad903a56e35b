"""dInfer's hierarchical rule: one token per run of masks, divide and conquer (2510.08666)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from dllm.checks import check_probability
from dllm.samplers.candidates import Candidates
from dllm.samplers.rule import CommitRuleBase, Selection


@dataclass(frozen=True)
class Hierarchical(CommitRuleBase):
    """Commit the best of every run of adjacent masks if above `low`, and all above `high`.

    So no two neighbours are committed on low confidence, and a run shrinks like in a binary search.
    Both tests are strict, as in the text. The released code is for one row; here rows are ragged.
    """

    paper = "dInfer, arXiv 2510.08666"
    low: float = 0.4
    high: float = 0.9

    def __post_init__(self) -> None:
        check_probability("high", self.high)
        if not 0 <= self.low <= self.high:
            raise ValueError(f"low={self.low}: expected a probability up to high={self.high}")

    def select(self, view: Candidates) -> Selection:
        # A run starts where the position before holds no candidate; padding belongs to no run.
        last = torch.where(view.valid, view.pos, -2).cummax(1).values
        before = torch.cat([torch.full_like(last[:, :1], -2), last[:, :-1]], 1)
        run = (view.valid & (view.pos != before + 1)).cumsum(1)  # [B, K], from 1
        rank = view.rank()  # padding last, so that it is never the best of a run
        best = torch.full((len(run), run.shape[1] + 1), run.shape[1], device=run.device)
        best = best.scatter_reduce(1, run, rank, "amin")  # best rank of every run
        split = (rank == best.gather(1, run)) & (view.conf > self.low)
        return Selection(view.valid & (split | (view.conf > self.high)))
