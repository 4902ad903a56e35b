"""Fast-dLLM's two rules: a confidence threshold and a factor (arXiv 2505.22618, section 3.3)."""

from __future__ import annotations

from dataclasses import dataclass

from dllm.checks import check_positive, check_probability
from dllm.samplers.candidates import Candidates
from dllm.samplers.rule import NOISE, CommitRuleBase, Selection, doubt


@dataclass(frozen=True)
class ThresholdRule(CommitRuleBase):
    """Commit every candidate whose probability is at least `threshold` (0.9 as published).

    The paper says "exceeds"; the released code keeps equality, and so do we.
    """

    paper = "Fast-dLLM, arXiv 2505.22618"
    threshold: float = 0.9

    def __post_init__(self) -> None:
        check_probability("threshold", self.threshold)

    def select(self, view: Candidates) -> Selection:
        return Selection(view.conf >= self.threshold)


@dataclass(frozen=True)
class Factor(CommitRuleBase):
    """Commit the n most confident candidates, n the largest with (n + 1)(1 - c_(n)) < `factor`.

    factor: 1 is the edge of the paper's theorem. We follow the paper. compat: as widely copied
    code does, also commit the last-ranked candidate where it is the only one that fails; the first
    never fails there, so that two candidates always go together.
    """

    paper = "Fast-dLLM, arXiv 2505.22618"
    factor: float = 1.0
    compat: bool = False

    def __post_init__(self) -> None:
        check_positive("factor", self.factor)

    def select(self, view: Candidates) -> Selection:
        rank = view.rank()  # [B, K], from 0
        # (n + 1)(1 - c_(n)) grows with n: those that pass are the first n.
        passes = view.valid & ((rank + 2) * doubt(view) < self.factor * (1 - NOISE))
        if self.compat:
            # The scan takes "the last one failed" for "none failed" and commits it as well.
            count = passes.sum(1, keepdim=True).clamp(min=1)
            total = view.valid.sum(1, keepdim=True)
            passes |= view.valid & (rank <= count) & (count + 1 == total)
        return Selection(passes)
