"""DUS: positions of a window at halving strides, whatever the model says (arXiv 2506.19037)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from dllm.samplers.candidates import Candidates
from dllm.samplers.rule import CommitRuleBase, Selection


@dataclass(frozen=True)
class Dilated(CommitRuleBase):
    """Commit the candidates at multiples of size / 2^l from the window's start in its forward l.

    Forwards count from 1: a window of 2^n masked positions takes n of them. Where size / 2^l is not
    whole it is rounded up: then, too, no forward commits two neighbours in a window of more than
    two. A level that is filled already commits the most confident candidate. Base 2 as released. We
    follow the paper: the level fixes the positions (a mode of the code takes only their number from
    it). Its optional minimum-gap filter is left out.
    """

    paper = "DUS, arXiv 2506.19037"

    def select(self, view: Candidates) -> Selection:
        size = view.end - view.start
        spread = torch.bitwise_left_shift(
            torch.ones_like(size), (view.window_step + 1).clamp(max=62)
        )
        stride = (size + spread - 1) // spread
        offset = view.pos - view.start[:, None]
        return Selection(view.valid & (offset % stride.clamp(min=1)[:, None] == 0))
