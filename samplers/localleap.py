"""LocalLeap: a lower threshold near confident candidates (arXiv 2510.07081)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from dllm.checks import check_probability, check_whole
from dllm.samplers.candidates import Candidates
from dllm.samplers.rule import CommitRuleBase, Selection


@dataclass(frozen=True)
class LocalLeap(CommitRuleBase):
    """Commit what reaches `threshold`, and what reaches `relaxed` up to `radius` away from that.

    Anchors are this step's candidates only; the radius counts positions, decoded ones too; what
    the relaxed test admits is no anchor. Both tests keep equality. Defaults as published for
    LLaDA (Dream: relaxed=0.8). The rule is read from the paper and a fork of the released code.
    """

    paper = "LocalLeap, arXiv 2510.07081"
    threshold: float = 0.9
    relaxed: float = 0.75
    radius: int = 4

    def __post_init__(self) -> None:
        check_probability("threshold", self.threshold)
        if not 0 <= self.relaxed <= self.threshold:
            raise ValueError(
                f"relaxed={self.relaxed}: expected a probability up to threshold={self.threshold}"
            )
        check_whole("radius", self.radius, 0)

    def select(self, view: Candidates) -> Selection:
        anchor = view.valid & (view.conf >= self.threshold)
        # Positions ascend: the nearest anchors are the last one so far and the next one.
        far = self.radius + 1
        before = torch.where(anchor, view.pos, -far).cummax(1).values
        after = torch.where(anchor, view.pos, view.end[:, None] + far).flip(1).cummin(1).values
        near = (view.pos - before <= self.radius) | (after.flip(1) - view.pos <= self.radius)
        return Selection(anchor | (view.valid & near & (view.conf >= self.relaxed)))
