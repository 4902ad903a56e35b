"""Sparse-dLLM (arXiv 2508.02558, section 3): after two full forwards a window reads itself and the
part of the other positions that its queries point at, layer by layer.

The paper evicts the rest and saves memory. Here slots stay where they are and are masked, so that
one KV cache serves all policies: what is predicted is the same, memory is not saved.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dllm.cache.plan import Layer, at_positions
from dllm.cache.policy import (
    SINCE_ENTERED,
    Facts,
    PolicyBase,
    Query,
    Runs,
    State,
    Step,
    due,
    entered,
)
from dllm.checks import check_share, check_whole
from dllm.decoding.canvas import positions
from dllm.decoding.state import Fields


@dataclass(frozen=True)
class Sparse(PolicyBase):
    """Compute all in a window's first two forwards, then the window, which reads what was kept.

    keep: share of the n positions outside the window that each layer keeps, floor(keep * n).
    width: a position counts as much as the best of so many around it, an odd number. refresh:
    forwards of a window between two that compute and read all, and choose anew (none: only the
    first two compute all, and the second one chooses).
    """

    paper: ClassVar[str] = "Sparse-dLLM, arXiv 2508.02558"
    fields: ClassVar[Fields] = SINCE_ENTERED
    keep: float = 0.5
    width: int = 3
    refresh: int | None = None

    def __post_init__(self) -> None:
        check_share("keep", self.keep, "a share")
        if not (isinstance(self.width, int) and self.width >= 1 and self.width % 2):
            raise ValueError(f"width={self.width!r}: expected an odd whole number of at least 1")
        check_whole("refresh", self.refresh, 1, none=True)

    def bind(self, spec: Facts) -> Self:
        """Refuse block-causal models: a row might keep nothing that it may see."""
        if spec.block_length is not None:
            raise ValueError("expected a bidirectional model: one of blocks has an exact cache")
        return self

    def query(self, step: Step, state: State) -> Query:
        new, since = entered(step, state), state["since"]
        full = new | (since == 1) | due(since, self.refresh)
        outside = step.inside & ~step.window
        pos, real = positions(outside & (full & ~new)[:, None])
        arrays = {
            "window": step.window,
            "full": full,
            "choosing": full & ~new,
            "pos": pos,
            "real": real,
            "count": (outside.sum(1) * self.keep).astype(np.int64),
        }
        runner = Runs(partial(Kept, width=self.width), arrays)
        return Query(step.window | (step.inside & full[:, None]), runner=runner)


@dataclass(frozen=True)
class Kept:
    """Hides slots from queries; which ones, a layer says in the forward that chooses.

    window [B, T]: always read. full [B]: rows that read everything. choosing [B]: rows that choose
    now, among their positions outside the window: pos [B, N], T where not real [B, N], of which
    `count` [B] are kept.
    What is hidden is kept beside the keys it is about, so that with guidance each of the two
    branches has its own choice.
    """

    window: Tensor
    full: Tensor
    choosing: Tensor
    pos: Tensor
    real: Tensor
    count: Tensor
    width: int

    def layer(self, layer: Layer, x: Tensor, run: Any) -> tuple[Tensor, Any]:
        """Rows x [B, Q, d] behind `layer`, their attention restricted to what is not hidden."""
        rows = slice(None) if run.access.rows is None else run.access.rows
        q, k, v = layer.heads(x, run)
        k, v = run.update(layer.index, k, v)
        hidden = run.kv.keep_extra("hidden", (), torch.bool)[layer.index, :, :-1]  # [B, T]
        if self.pos.shape[1]:
            new = self.choose(q, k, run, rows)
            hidden[rows] = torch.where(self.choosing[rows, None], new, hidden[rows])
        read = ~hidden[rows] | self.window[rows] | self.full[rows, None]
        mask = read[:, None, None, : k.shape[2]]  # [B, 1, 1, K]
        if (base := run.layer_mask(layer.index)) is not None:
            mask = mask & base
        x = x + layer.attend(q, k, v, mask)
        return x + layer.feed(x), run

    def choose(self, q: Tensor, k: Tensor, run: Any, rows: Any) -> Tensor:
        """[B, T] what is hidden from now on, by queries q [B, H, Q, D] and all keys k."""
        pos, real, window = self.pos[rows], self.real[rows], self.window[rows]
        asking = window.gather(1, run.pos)  # [B, Q]
        if run.valid is not None:
            asking &= run.valid
        score = scores(q, k, asking)  # [B, K]
        score = score.gather(1, pos.clamp(max=k.shape[2] - 1)).masked_fill(~real, -torch.inf)
        width = min(self.width, 2 * score.shape[1] - 1)  # a wider one sees no more
        score = F.max_pool1d(score, width, stride=1, padding=width // 2)
        score = score.masked_fill(~real, -torch.inf)
        rank = score.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        lost = real & (rank >= self.count[rows, None])
        return at_positions(pos, lost, window.shape[1])


def scores(q: Tensor, k: Tensor, asking: Tensor) -> Tensor:
    """[B, K] mean over heads of (the mean of the `asking` [B, Q] queries q) . k, unscaled.

    q [B, H, Q, D], k [B, H_kv, K, D]: grouped queries share a key head, and as the score is linear
    in the query their mean stands for them (as if the key heads were repeated).
    """
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    weight = asking.to(wide) / asking.sum(1, keepdim=True).clamp(min=1)
    query = (q.to(wide) * weight[:, None, :, None]).sum(2)  # [B, H, D]
    query = query.view(len(k), k.shape[1], -1, k.shape[3]).mean(2)  # [B, H_kv, D]
    found: Tensor = (query[:, :, None] * k.to(wide)).sum(-1).mean(1)
    return found
