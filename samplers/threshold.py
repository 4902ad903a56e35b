"""Fast-dLLM's confidence threshold (arXiv 2505.22618, section 3.3)."""

from __future__ import annotations

from dataclasses import dataclass

from dllm.samplers.candidates import Candidates
from dllm.samplers.rule import CommitRule, Selection


@dataclass(frozen=True)
class Threshold(CommitRule):
    """Commit every candidate whose probability is at least `threshold`, and always the best one."""

    paper = "Fast-dLLM, arXiv 2505.22618"
    threshold: float = 0.9

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold={self.threshold}: expected a probability from 0 to 1")

    def select(self, view: Candidates) -> Selection:
        return Selection(view.valid & ((view.conf >= self.threshold) | (view.rank() == 0)))
