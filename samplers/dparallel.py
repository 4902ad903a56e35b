"""dParallel's sampler: a threshold on the entropy (arXiv 2509.26488)."""

from __future__ import annotations

from dataclasses import dataclass

from dllm.checks import check_number
from dllm.samplers.candidates import Candidates
from dllm.samplers.rule import CommitRuleBase, Selection


@dataclass(frozen=True)
class Entropy(CommitRuleBase):
    """Commit every candidate whose entropy is at most `threshold` nats; else the least entropy.

    The default is that of most released evaluation scripts (0.45 in the others). Equality is kept,
    as in the released code for LLaDA; its code for Dream rejects it.
    """

    paper = "dParallel, arXiv 2509.26488"
    threshold: float = 0.5

    def __post_init__(self) -> None:
        check_number("threshold", self.threshold, 0, kind="an entropy in nats")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"entropy"})

    def select(self, view: Candidates) -> Selection:
        assert view.entropy is not None
        return Selection(view.entropy <= self.threshold, (-view.entropy, -view.log1m))
