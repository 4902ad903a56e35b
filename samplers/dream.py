"""Dream's reference sampler: a share of the masks per step on a linear time grid (2508.15487)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from dllm.checks import check_number, check_whole
from dllm.samplers.candidates import Candidates
from dllm.samplers.noise import gumbel
from dllm.samplers.rule import CommitRuleBase, Selection, steps_of_window, top


@dataclass(frozen=True)
class Dream(CommitRuleBase):
    """Commit floor(masks * r) candidates, r = 1 - t(n+1) / t(n) with t linear from 1 to `eps` in
    `steps`.

    alg: "origin" commits each position with probability r; "maskgit_plus", "topk_margin" and
    "entropy" commit the best by probability, margin or negative entropy, taken after temperature,
    top_p and top_k. alg_temp > 0 draws positions from softmax(score / alg_temp), without
    replacement, in place of the best. Upstream spends forwards that commit nothing where the floor
    is 0; here every forward commits at least one token. Masks are counted per row.
    """

    paper = "Dream, arXiv 2508.15487"
    alg: Literal["origin", "maskgit_plus", "topk_margin", "entropy"] = "origin"
    steps: int | None = None
    eps: float = 1e-3
    alg_temp: float = 0.0

    def __post_init__(self) -> None:
        check_whole("steps", self.steps, 1, none=True)
        if not 0 < self.eps < 1:
            raise ValueError(f"eps={self.eps}: expected a number between 0 and 1")
        check_number("alg_temp", self.alg_temp, 0)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"topk_margin": {"margin"}, "entropy": {"entropy"}}.get(self.alg, set()))

    @property
    def tempered(self) -> bool:
        return True

    def select(self, view: Candidates) -> Selection:
        steps = steps_of_window(view, self.steps)
        rate = self.rate(view.window_step, steps)
        if self.alg == "origin":
            return Selection(view.valid & (view.uniform() < rate[:, None]))
        masks = view.valid.sum(1)
        count = (masks * rate).long()
        scores = self.scores(view)
        if self.alg_temp > 0:
            # The k best of score / temperature + Gumbel noise: k draws without replacement.
            scores = (scores[0].double() / self.alg_temp + gumbel(view.uniform()),)
        return Selection(top(view, count.clamp(min=1), *scores))

    def rate(self, step: Tensor, steps: Tensor) -> Tensor:
        """Share of the masks to commit at `step` [B] of `steps` [B], in float64; 1 at the last."""
        now = 1 - (1 - self.eps) * step.double() / steps
        then = 1 - (1 - self.eps) * (step.double() + 1) / steps
        return torch.where(step + 1 >= steps, 1.0, 1 - then / now)

    def scores(self, view: Candidates) -> tuple[Tensor, ...]:
        """The score, and what tells saturated values of it apart."""
        if self.alg == "topk_margin" and view.margin is not None:
            return view.margin, -view.log1m
        if self.alg == "entropy" and view.entropy is not None:
            return -view.entropy, -view.log1m
        return view.certainty
