"""KLASS: commit what is confident and has stopped changing (arXiv 2511.05664)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dllm.checks import check_positive, check_probability, check_whole
from dllm.decoding.state import Fields, StateField
from dllm.samplers.candidates import Candidates
from dllm.samplers.rule import CommitRuleBase, Selection, quota, top


@dataclass(frozen=True)
class Klass(CommitRuleBase):
    """Commit candidates with probability above `threshold` whose distribution moved by less than
    `kl_threshold` nats in each of the last `history` steps of the window; where a row has none, the
    k most confident, k LLaDA's quota for `steps` (None: one).

    Both tests are strict, as in the paper. The defaults are the paper's for LLaDA on GSM8K; it uses
    (.6, .01) for MATH, (.9, .01) for HumanEval, (.7, .01) for MBPP. Departure from the released
    code: a row that falls back leaves the other rows alone.
    """

    paper = "KLASS, arXiv 2511.05664"
    # for how many steps the distribution has hardly moved
    fields: ClassVar[Fields] = {"calm": StateField(0, per_position=True)}
    threshold: float = 0.6
    kl_threshold: float = 0.015
    history: int = 2
    steps: int | None = None

    def __post_init__(self) -> None:
        check_probability("threshold", self.threshold)
        check_positive("kl_threshold", self.kl_threshold)
        for name, value in (("history", self.history), ("steps", self.steps)):
            check_whole(name, value, 1, none=True)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"kl"})

    def select(self, view: Candidates) -> Selection:
        stable = view.valid & (self.calm_steps(view) >= self.history)
        accepted = stable & (view.conf > self.threshold)
        none = ~accepted.any(1, keepdim=True)
        return Selection(accepted | (none & top(view, quota(view, self.steps))))

    def calm_steps(self, view: Candidates) -> Tensor:
        """[B, K] for how many steps up to this one each candidate's distribution hardly moved."""
        assert view.kl is not None
        run = view.state["calm"]  # [B, absolute position]
        # Padding reads and writes the column behind all positions, which stays 0.
        index = view.pos.where(view.valid, run.shape[1] - 1)
        before = run.gather(1, index).masked_fill(view.window_step[:, None] == 0, 0)
        calm = torch.where(view.valid & (view.kl < self.kl_threshold), before + 1, 0)
        view.state["calm"] = torch.zeros_like(run).scatter_(1, index, calm)
        return calm
