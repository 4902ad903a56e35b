"""dKV-Cache-Greedy: a handful of positions a forward, whatever the length (arXiv 2505.15781)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from dllm.cache.policy import SINCE_ENTERED, PolicyBase, Query, State, Step, due, entered
from dllm.checks import check_choice, check_whole
from dllm.decoding.canvas import Array
from dllm.decoding.state import Fields


@dataclass(frozen=True)
class GreedyPolicy(PolicyBase):
    """Compute what may be committed now, what was committed last, and masks near the former.

    Only `ahead` masked positions are predicted, chosen before the forward. order: "random" takes
    them in a fixed random order of each row's positions, as released (which commits all of them);
    "confidence" (ours) takes those most confident when last seen, and all of the windows in a
    forward that computes all. neighbours: for each of them so many more masks, the nearest by
    distance, left before right. refresh: all is computed when a window is entered, and in every
    refresh-th forward of it (none: not again).
    """

    paper: ClassVar[str] = "dKV-Cache-Greedy, arXiv 2505.15781"
    fields: ClassVar[Fields] = SINCE_ENTERED
    narrows: ClassVar[bool] = True
    wants_confidence: ClassVar[bool] = True
    refresh: int | None = 4
    neighbours: int = 4
    ahead: int = 4
    order: Literal["confidence", "random"] = "confidence"

    def __post_init__(self) -> None:
        check_whole("refresh", self.refresh, 1, none=True)
        check_whole("neighbours", self.neighbours, 0)
        check_whole("ahead", self.ahead, 1)
        check_choice("order", self.order, "confidence", "random")

    def query(self, step: Step, state: State) -> Query:
        whole = (entered(step, state) | due(state["since"], self.refresh))[:, None]
        masked = step.want & step.canvas.masked
        random = self.order == "random"
        rank = ranked(masked, shuffled(step) if random else step.confidence)
        offered = masked & (rank < self.ahead)
        near = self.beside(rank, offered, step.canvas.masked & ~offered)
        pos = step.inside & (whole | offered | near | step.changed)
        if not random:
            offered |= masked & whole
        # what is known and wanted all the same (rules that look back) is not left out
        return Query(pos, want=offered | ~step.canvas.masked)

    def beside(self, rank: Array, offered: Array, free: Array) -> Array:
        """[B, T] of the `free` masks those nearest to each `offered` position, by its `rank`.

        One after another: a mask that one has taken is not there for the next.
        """
        pos = np.arange(free.shape[1])
        found = np.zeros_like(free)
        for k in range(min(self.ahead, free.shape[1])):
            this = offered & (rank == k)  # one position, or none
            away = pos - np.where(this, pos, 0).sum(1, keepdims=True)
            order = ranked(free & ~found, -(2 * np.abs(away) + (away > 0)))
            found |= free & ~found & (order < self.neighbours) & this.any(1, keepdims=True)
        return found


def ranked(mask: Array, score: Array) -> Array:
    """[B, T] rank from 0 by score, highest first, ties to the left, outside `mask` last."""
    score = np.where(mask, score.astype(np.float64), -np.inf)
    order = np.argsort(-score, axis=1, kind="stable")
    rank = np.empty_like(order)
    np.put_along_axis(rank, order, np.arange(mask.shape[1])[None], 1)
    return rank


def shuffled(step: Step) -> Array:
    """[B, T] numbers in [0, 2**48) that depend on the row's index and the position only."""
    x = (step.canvas.row[:, None] + 1) * 0x9E3779B97F4A + step.canvas.pos
    for _ in range(3):  # each round multiplies, then brings the well mixed high bits down
        x = (x * 0x5851F42D4C957F2D) & ((1 << 48) - 1)
        x = x ^ (x >> 23)
    return x
