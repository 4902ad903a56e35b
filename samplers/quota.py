"""LLaDA's reference sampler: a fixed number of tokens per step (arXiv 2502.09992, section 2.4)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from dllm.checks import check_whole
from dllm.samplers.candidates import Candidates
from dllm.samplers.rule import CommitRuleBase, Selection, quota, top


@dataclass(frozen=True)
class Quota(CommitRuleBase):
    """Commit the k best candidates, k fixed by `steps`: the earlier steps of a window get one more.

    steps: forwards for the whole answer (not per block). count: k itself. With neither, one token
    per forward.
    remasking: "low_confidence" keeps the most confident, "random" keeps random positions.
    logits_eos_inf: never propose end of sequence; end of turn stays allowed.
    confidence_eos_eot_inf: commit end tokens last (as intended upstream; the released code edits
    the logits after the choice and does not get there).
    """

    paper = "LLaDA, arXiv 2502.09992"
    steps: int | None = None
    remasking: Literal["low_confidence", "random"] = "low_confidence"
    logits_eos_inf: bool = False
    confidence_eos_eot_inf: bool = False
    count: int | None = None

    def __post_init__(self) -> None:
        for name in ("steps", "count"):
            check_whole(name, getattr(self, name), 1, none=True)
        if self.steps is not None and self.count is not None:
            raise ValueError(f"steps={self.steps}, count={self.count}: expected one of the two")

    @property
    def bans_eos(self) -> bool:
        return self.logits_eos_inf

    def select(self, view: Candidates) -> Selection:
        scores: tuple[Tensor, ...] = ()
        if self.remasking == "random":
            scores = (view.uniform(),)
        if self.confidence_eos_eot_inf:
            scores = tuple(
                score.masked_fill(view.ends, -torch.inf) for score in scores or view.certainty
            )
        if self.count is not None:
            return Selection(view.valid & (view.rank(*scores) < self.count))
        return Selection(top(view, quota(view, self.steps), *scores))
