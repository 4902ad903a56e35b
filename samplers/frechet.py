"""Fast-dLLM++: commit while the Fréchet bounds single out the proposal (arXiv 2606.02955)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from dllm.checks import check_probability
from dllm.samplers.candidates import Candidates
from dllm.samplers.rule import NOISE, CommitRuleBase, Selection, doubt


@dataclass(frozen=True)
class Frechet(CommitRuleBase):
    """Commit the n most confident candidates, n the largest with L_n - U_n > `delta`.

    L_n = 1 - sum_{j<=n} (1 - c_(j)) bounds the joint probability of the n tokens from below,
    U_n = 1 - c_(n) that of a rival from above. delta: the papers' runs use 0.02 to 0.30, 0.25 is
    their default. Equal confidences give Fast-dLLM's factor rule with factor = 1 - delta.
    """

    paper = "Fast-dLLM++, arXiv 2606.02955"
    delta: float = 0.25

    def __post_init__(self) -> None:
        check_probability("delta", self.delta)

    def select(self, view: Candidates) -> Selection:
        rank = view.rank()
        rest = doubt(view)
        best_first = torch.empty_like(rest).scatter_(1, rank, rest)  # padding comes last
        short = best_first.cumsum(1) + best_first  # 1 - (L_n - U_n), grows with n
        passes = short < (1 - self.delta) * (1 - NOISE)
        return Selection(view.valid & passes.gather(1, rank))
