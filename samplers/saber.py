"""Saber: an adaptive confidence bar, and second thoughts about what was committed (2510.18165)."""

from __future__ import annotations

from dataclasses import dataclass
from math import nan
from typing import ClassVar

import torch
from torch import Tensor

from dllm.checks import check_whole
from dllm.decoding.state import Fields, StateField
from dllm.samplers.candidates import Candidates
from dllm.samplers.rule import CommitRuleBase, Selection


@dataclass(frozen=True)
class Saber(CommitRuleBase):
    """Commit candidates above the mean probability at which this window's tokens were committed (1
    at its start), or the `count` best if fewer are; with k committed, mask max(floor(count / 2),
    ceil(k / 8)) committed positions again, at most k - 1.

    Those are the tokens of the window where the probability of the most likely token fell most
    since the last step, also where it fell nowhere (the paper asks for the largest drops, not for
    positive ones); a token not scored at the last step counts as unchanged. Every step gains at
    least one token. The mean keeps the tokens that were taken back. Departures from the released
    code: only tokens of earlier steps are taken back, and never is a committed token overwritten
    because fewer than `count` masked positions are left.
    """

    paper = "Saber, arXiv 2510.18165"
    # of the window: probabilities of its commits, their number, and what was last seen where
    fields: ClassVar[Fields] = {
        "total": StateField(0, "float64"),
        "number": StateField(0),
        "last": StateField(nan, "float32", per_position=True),
    }
    count: int = 2

    def __post_init__(self) -> None:
        check_whole("count", self.count, 1)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"best", "decoded"})

    @property
    def remasks(self) -> bool:
        return True

    def select(self, view: Candidates) -> Selection:
        fresh = view.window_step == 0
        total = view.state["total"].masked_fill(fresh, 0)
        number = view.state["number"].masked_fill(fresh, 0)
        bar = torch.where(number > 0, total / number, 1.0)[:, None]
        above = view.conf > bar
        commit = view.valid & (above | (view.rank() < self.count))
        committed = commit.sum(1)
        view.state["total"] = total + view.conf.double().where(commit, 0).sum(1)
        view.state["number"] = number + committed

        again = ((committed + 7) // 8).clamp(min=self.count // 2)
        again = torch.minimum(again, (committed - 1).clamp(min=0))
        return Selection(commit, remask=self.largest_drops(view, again, fresh))

    def largest_drops(self, view: Candidates, count: Tensor, fresh: Tensor) -> Tensor:
        """[B, D] the `count` [B] committed tokens whose probability fell most, lower ones first."""
        assert view.decoded is not None
        assert view.best_conf is not None
        decoded = view.decoded
        last = view.state["last"]  # [B, position]
        seen = torch.full_like(last, torch.nan)
        # Padding reads and writes the column behind all positions, which stays unscored.
        behind = last.shape[1] - 1
        where = decoded.pos.where(decoded.valid, behind)
        drop = last.gather(1, where).masked_fill(fresh[:, None], torch.nan) - decoded.conf
        drop = drop.nan_to_num(0.0).masked_fill(~decoded.valid, -torch.inf)
        for pos, valid, conf in (
            (view.pos, view.valid, view.best_conf),
            (decoded.pos, decoded.valid, decoded.conf),
        ):
            seen = seen.scatter(1, pos.where(valid, behind), conf.where(valid, torch.nan))
        view.state["last"] = seen

        order = drop.argsort(dim=1, descending=True, stable=True)
        place = torch.arange(order.shape[1], device=order.device).expand_as(order)
        rank = torch.empty_like(order).scatter_(1, order, place)
        return decoded.valid & (rank < count[:, None])
