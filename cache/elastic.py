"""Elastic-Cache (arXiv 2510.14973): compute little, and from the layer where attention drifts, all.

A step computes the first masked positions, what the last step decoded and a few tracked tokens.
Behind each layer the tracked tokens' attention is compared with what it was; where it has drifted,
all positions go on from the next layer's kept inputs. Layers before keep what they had for the
others.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from math import isfinite
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from dllm.cache.plan import Layer
from dllm.cache.policy import Facts, PolicyBase, Query, Runs, State, Step, due
from dllm.checks import check_whole
from dllm.decoding.canvas import Array, positions


@dataclass(frozen=True)
class Elastic(PolicyBase):
    """Compute the first masked positions, what the last step changed and the tracked tokens; widen
    on drift.

    window: masked positions that are predicted in a step, the first ones of what the planner offers
    (the paper has no blocks: use block_length=None). gamma: cosine below which attention has
    drifted; 0 never widens, 2 does behind the first layer of every step, which is not yet exact:
    rows that were not queried go on from older inputs. tracked: tokens of each layer, those the
    window attends to most. union: the test of every layer looks at the tracked tokens of all
    layers, as the released code does, and not at the layer's own, as the paper says. refresh:
    forwards between two that compute all from the first layer on (none: only the first does; 1:
    exact). With guidance both branches track what the guided one chose.
    """

    paper: ClassVar[str] = "Elastic-Cache, arXiv 2510.14973"
    narrows: ClassVar[bool] = True
    window: int = 32
    gamma: float = 0.9
    tracked: int = 1
    union: bool = False
    refresh: int | None = None

    def __post_init__(self) -> None:
        for name in ("window", "tracked"):
            check_whole(name, getattr(self, name), 1)
        if not isfinite(self.gamma):
            raise ValueError(f"gamma={self.gamma!r}: expected a finite number")
        check_whole("refresh", self.refresh, 1, none=True)

    def bind(self, spec: Facts) -> Elastic:
        """Itself; ValueError for a model whose attention is causal between blocks."""
        if spec.block_length is not None:
            raise ValueError(
                "expected a model whose positions all see each other: with block-causal attention "
                "decoded blocks and far masked positions cost nothing already, and drift says "
                "nothing"
            )
        return self

    def query(self, step: Step, state: State) -> Query:
        known = step.canvas.known & step.inside
        masked = step.want & ~known
        nearest = masked & (masked.cumsum(1) <= self.window)
        kept = step.kept("tracked")
        tracked = step.inside & (nearest[None] & False if kept is None else kept)  # [L, B, T]
        tested = np.broadcast_to(tracked.any(0), tracked.shape) if self.union else tracked
        whole = (step.index == 0) | due(step.index, self.refresh)
        names = ("window", "in_window", "tracked", "is_tracked")
        arrays = dict(zip(names, (*positions(nearest, fill=0), *_each(tested)), strict=True))
        arrays |= {"inside": step.inside, "known": known}
        return Query(
            pos=step.inside & (nearest | step.changed | tracked.any(0) | whole[:, None]),
            want=nearest | (step.want & known),
            runner=Runs(partial(Widening, self), arrays),
        )


@dataclass(frozen=True, slots=True)
class Way:
    """The rows [b, Q] that flow through a layer: `run` is theirs, the decoder's.

    row [b]: of the KV cache. slot [b, Q]: where a query's inputs are kept, T for padding. plan [b,
    Q']: positions the plan asks for; fresh [b, T]: the same as a mask, padding left out. whole [b]:
    rows of which all positions flow; done: they are all rows. wide: position p is place p on the
    query axis.
    """

    run: Any
    row: Tensor
    slot: Tensor
    plan: Tensor
    fresh: Tensor
    whole: Tensor
    done: bool
    wide: bool = False

    @classmethod
    def of(cls, run: Any, inside: Tensor) -> Way:
        """The way that a plan's rows begin; inside [B, T]: all positions of each row."""
        rows = run.access.rows
        row = torch.arange(len(inside), device=inside.device) if rows is None else rows
        slot = run.pos if run.valid is None else run.pos.where(run.valid, inside.shape[1])
        fresh = torch.zeros_like(torch.nn.functional.pad(inside[row], (0, 1)))
        fresh = fresh.scatter_(1, slot, True)[:, :-1]
        whole = (fresh == inside[row]).all(1)
        return cls(run, row, slot, run.pos, fresh, whole, run.access.whole)

    def write(self, kept: Tensor, rows: Tensor) -> None:
        """Put the real ones of `rows` [b, Q, ...] to their positions in `kept` [B, T + 1, ...]."""
        kept[self.row[:, None], self.slot] = rows

    def widened(self, whole: Tensor, inside: Tensor, done: bool) -> Way:
        """All positions of the rows `whole` [b] from here on; the other rows' own are padded."""
        extent = self.run.access.extent
        valid = ((self.fresh | whole[:, None]) & inside[self.row])[:, :extent]
        pos = torch.arange(extent, device=valid.device).expand_as(valid)
        slot = pos.where(valid, inside.shape[1])
        run = self.run.at(pos, valid)
        return replace(self, run=run, slot=slot, whole=whole, done=done, wide=True)

    def planned(self, x: Tensor) -> Tensor:
        """Those of the rows x [b, Q, d] that the plan asks for, in its order."""
        return x.gather(1, self.plan[..., None].expand(-1, -1, x.shape[-1])) if self.wide else x


@dataclass(frozen=True, slots=True)
class Widening:
    """Layer runner of one step. It keeps the inputs and queries of all positions, layer by layer.

    inside, known [B, T]: positions of the row, and those with a token. window [B, W]: the masked
    ones at work, where in_window [B, W]. tracked [L', B, N]: positions, where is_tracked [L', B,
    N]; L' is 1 as long as nothing is tracked.
    """

    policy: Elastic
    inside: Tensor
    known: Tensor
    window: Tensor
    in_window: Tensor
    tracked: Tensor
    is_tracked: Tensor

    def layer(self, layer: Layer, x: Tensor, run: Any) -> tuple[Tensor, Any]:
        way = run if isinstance(run, Way) else Way.of(run, self.inside)
        run, kv, index = way.run, way.run.kv, layer.index
        inputs = kv.keep_extra("inputs", x.shape[2:], x.dtype)
        way.write(inputs[index], x)
        q, k, v = layer.heads(x, run)
        queries = kv.keep_extra("queries", (q.shape[1], q.shape[3]), q.dtype)[index]
        tests = index + 1 < len(inputs) and self.tracked.numel() and not way.done
        if tests:  # with what is stored, before this step's queries and keys replace it
            kept, _ = kv.read(index, run.access)
            old = self._tracked(index, way, queries, kept, run.layer_mask(index))
        way.write(queries, q.transpose(1, 2))
        k, v = run.update(index, k, v)
        mask = run.layer_mask(index)
        x = x + layer.attend(q, k, v, mask)
        x = x + layer.feed(x)
        self._choose(index, way, queries, k, mask)
        if tests:
            new = self._tracked(index, way, queries, k, mask)
            real = self.is_tracked[index, way.row]
            drifted = real.any(1) & (similarity(old, new, real) < self.policy.gamma)
            whole = way.whole | drifted
            # the one look at the device that this method is about: does any row go on as a whole?
            widens, done = torch.stack([(whole & ~way.whole).any(), whole.all()]).tolist()
            if widens:
                way.write(inputs[index + 1], x)
                way = way.widened(whole, self.inside, done)
                x = inputs[index + 1, way.row, : run.access.extent]
        return (way.planned(x) if index + 1 == len(inputs) else x), way

    def _tracked(
        self, index: int, way: Way, queries: Tensor, k: Tensor, mask: Tensor | None
    ) -> Tensor:
        """Log attention [b, H, N, K] of the layer's tracked tokens, as kept in `queries`."""
        pos = self.tracked[index, way.row]
        return log_weights(queries[way.row[:, None], pos], k, mask)

    def _choose(
        self, index: int, way: Way, queries: Tensor, k: Tensor, mask: Tensor | None
    ) -> None:
        """Track from now on the known tokens that the window's masks attend to most."""
        row = way.row
        weights = log_weights(queries[row[:, None], self.window[row]], k, mask).exp()
        mass = (weights * self.in_window[row][:, None, :, None]).sum((1, 2))  # [b, K]
        known = self.known[row]
        mass = torch.nn.functional.pad(mass, (0, known.shape[1] - mass.shape[1]))
        order = mass.masked_fill(~known, -1).argsort(dim=1, descending=True, stable=True)
        best = torch.zeros_like(known).scatter_(1, order[:, : self.policy.tracked], True)
        way.run.kv.keep_extra("tracked", (), torch.bool)[index, row, :-1] = best & known


def _each(tracked: Array) -> tuple[Array, Array]:
    """Positions [L, B, N] of the mask `tracked` [L, B, T], and which of them are real."""
    pos, real = positions(tracked.reshape(-1, tracked.shape[2]), fill=0)
    return pos.reshape(*tracked.shape[:2], -1), real.reshape(*tracked.shape[:2], -1)


def log_weights(q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
    """Log attention [b, H, N, K] of queries q [b, N, H, D] over keys k [b, H_kv, K, D].

    mask: bool [b, 1, 1, K] or None; at least in fp32.
    """
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    q, k = q.transpose(1, 2).to(wide), k.to(wide)
    k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    scores: Tensor = q @ k.mT * q.shape[-1] ** -0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return scores.log_softmax(-1)


def similarity(old: Tensor, new: Tensor, real: Tensor) -> Tensor:
    """[b] cosine across the heads of log attentions [b, H, N, K], mean over `real` [b, N] and keys.

    In logarithms, since the weights of far keys may be too small to be squared. Keys that are
    not read count for nothing.
    """
    inner = (old + new).logsumexp(1)  # [b, N, K]
    norms = ((2 * old).logsumexp(1) + (2 * new).logsumexp(1)) / 2
    counts = real[..., None] & norms.isfinite()
    total = (inner - norms).exp().masked_fill(~counts, 0).sum((1, 2))
    return total / counts.sum((1, 2)).clamp(min=1)
