"""First-hitting sampler: random order, a fixed number of tokens a forward (arXiv 2409.02908)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from dllm.checks import check_whole
from dllm.samplers.candidates import Candidates
from dllm.samplers.rule import CommitRuleBase, Selection, top


@dataclass(frozen=True)
class FirstHitting(CommitRuleBase):
    """Commit `count` candidates, uniformly drawn, whatever their probabilities.

    With count 1, temperature 1 and the whole answer as one window, the distribution of the answer
    is that of ancestral sampling with infinitely many steps: a network that is not told the time
    only sees in which order positions are hit, and that order is uniform. A larger count is an
    approximation.
    """

    paper = "First-hitting sampler, arXiv 2409.02908"
    count: int = 1

    def __post_init__(self) -> None:
        check_whole("count", self.count, 1)

    def select(self, view: Candidates) -> Selection:
        luck = view.uniform()
        return Selection(top(view, torch.full_like(view.row, self.count), luck), (luck,))
