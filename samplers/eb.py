"""EB-Sampler: as many tokens as an entropy budget allows (arXiv 2505.24857)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from dllm.checks import check_number
from dllm.samplers.candidates import Candidates
from dllm.samplers.rule import CommitRuleBase, Selection


@dataclass(frozen=True)
class EntropyBound(CommitRuleBase):
    """Commit the n surest candidates, n the largest with sum H - max H <= `bound` over them.

    That difference bounds the dependence lost by drawing n tokens at once, in nats. error: what
    "sure" means: low entropy, high confidence, or a large margin of the two best probabilities.
    0.1 is a usual bound of the paper. ParallelBench's copy adds up from left to right; the paper,
    and this rule, sort.
    """

    paper = "EB-Sampler, arXiv 2505.24857"
    bound: float = 0.1
    error: Literal["entropy", "confidence", "margin"] = "entropy"

    def __post_init__(self) -> None:
        check_number("bound", self.bound, 0, kind="an entropy in nats")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"entropy", "margin"} if self.error == "margin" else {"entropy"})

    def select(self, view: Candidates) -> Selection:
        assert view.entropy is not None
        score = self.score(view)
        rank = view.rank(*score)
        entropy = view.entropy.double().clamp(min=0)  # rounding may give less than 0
        ordered = torch.empty_like(entropy).scatter_(1, rank, entropy)  # padding comes last
        # The sum less the largest: each adds itself, or what was the largest before it. So it only
        # grows, however small the entropies are.
        before = pad(ordered.cummax(1).values[:, :-1], (1, 0))
        lost = torch.minimum(before, ordered).cumsum(1)
        # Compared in fp32, in which entropies come: 0.05 + 0.05 is no more than 0.1.
        passes = lost.float() <= self.bound
        return Selection(view.valid & passes.gather(1, rank), score)

    def score(self, view: Candidates) -> tuple[Tensor, ...]:
        """The error proxy, and what tells saturated values of it apart."""
        if self.error == "confidence":
            return view.certainty
        proxy = view.margin if self.error == "margin" else view.entropy
        assert proxy is not None
        return (proxy if self.error == "margin" else -proxy), -view.log1m
