"""Forwards of one step on the host, from what a policy wants computed [B, T]."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from dllm.cache.kv import KVCache
from dllm.cache.policy import Query, Runs, Step
from dllm.decoding.canvas import Array, positions

SMALLEST = 8  # queries of the least bucket; the others are powers of two


@dataclass(frozen=True, slots=True)
class HostPlan:
    """A `ForwardPlan` of b rows before it goes to the device; its fields mean the same there.

    written [b, T]: the slots that the forward writes. whole: every row computes all its positions.
    slots [b, Q], visible [b, extent]: of its access to the KV cache, see `opened`; None without one
    or where they are `pos`, and all.
    """

    pos: Array
    head: Array
    valid: Array | None
    write: Array | None
    read: Array | None
    rows: Array | None
    extent: int
    written: Array
    whole: bool
    runner: Runs | None
    slots: Array | None = None
    visible: Array | None = None


def opened(plan: HostPlan, kvs: Sequence[KVCache]) -> HostPlan:
    """The plan with its access to the `kvs`, whose slots are live from now on."""
    if not kvs:
        return plan
    for kv in kvs:
        kv.wrote(plan.rows, plan.written)
    slots = None
    if plan.valid is not None or plan.write is not None:
        write = np.take_along_axis(plan.written, plan.pos, 1)
        if plan.valid is not None:
            write = write & plan.valid
        slots = np.where(write, plan.pos, kvs[0].slots)
    live = kvs[0].live
    visible = (live if plan.rows is None else live[plan.rows])[:, : plan.extent]
    if plan.read is not None:
        visible = visible & plan.read[:, : plan.extent]
    return replace(plan, slots=slots, visible=None if visible.all() else visible)


def plans(
    query: Query, step: Step, want: Array, pos: Array, *, stored: bool, buckets: bool
) -> list[HostPlan]:
    """The forwards that compute `query` and predict the positions `want` [B, T], one or two.

    pos [B, K]: those of `want`, ascending, T behind. Rows that are refreshed go into a forward of
    their own, so that they do not widen the others'; without a KV cache all rows are computed
    whole, in one. buckets: pad query counts to 8, 16, 32, ...
    """
    inside, size = step.inside, want.shape[1]
    # Some models (Dream) predict position p from the row of p - 1, as AR models do: shift is 1
    # there, and the rows that predict are not the positions that are wanted.
    head = np.maximum(np.where(pos < size, pos, 0) - step.shift, 0)
    if not stored:
        return [_plan(query, step, inside, head, None, whole=True, buckets=False)]
    rows = want
    if step.shift:
        rows = np.zeros_like(want)
        rows[:, :-1] = want[:, 1:]
        rows[:, 0] |= want[:, 0]
    mask = (query.pos | rows) & inside
    if buckets and query.stale:
        mask = topped_up(mask, step)
    whole = np.asarray((mask == inside).all(1))
    if whole.all():
        return [_plan(query, step, inside, head, None, whole=True, buckets=False)]
    if not whole.any():
        return [_plan(query, step, mask, head, None, whole=False, buckets=buckets)]
    return [
        _plan(query, step, mask, head, part.nonzero()[0], whole=all_of_it, buckets=each)
        for part, all_of_it, each in ((whole, True, False), (~whole, False, buckets))
    ]


def _plan(
    query: Query,
    step: Step,
    mask: Array,
    head: Array,
    rows: Array | None,
    *,
    whole: bool,
    buckets: bool,
) -> HostPlan:
    """The forward of `rows` [b] (None: all B) that computes the positions in `mask` [B, T]."""
    live, write, read = step.live, query.write, query.read
    if rows is not None:
        mask, head, live = mask[rows], head[rows], live[rows]
        write = None if write is None else write[rows]
        read = None if read is None else read[rows]
    extent = int(np.flatnonzero((live | mask).any(0))[-1]) + 1
    if whole:
        pos = np.broadcast_to(step.canvas.pos[:extent], (len(mask), extent))
        valid = mask[:, :extent]
    else:
        pos, valid = positions(mask, fill=0)
        if buckets and pos.shape[1] < (width := bucket(pos.shape[1])):
            more = ((0, 0), (0, width - pos.shape[1]))
            pos, valid = np.pad(pos, more), np.pad(valid, more)
        # where a position stands on the query axis
        head = np.maximum(np.take_along_axis(mask.cumsum(1) - 1, head, 1), 0)
    return HostPlan(
        pos=pos,
        head=head,
        valid=None if valid.all() else valid,
        write=None if write is None else np.take_along_axis(write, pos, 1),
        read=read,
        rows=rows,
        extent=extent,
        written=mask if write is None else mask & write,
        whole=whole,
        runner=query.runner,
    )


def bucket(count: int) -> int:
    """The least of 8, 16, 32, ... that is not below `count`."""
    return max(SMALLEST, 1 << (count - 1).bit_length())


def topped_up(mask: Array, step: Step) -> Array:
    """`mask` [B, T] with each row filled up to its bucket by its stalest positions.

    A row's own count decides, not the batch's widest, so that its result is its own.
    """
    count = mask.sum(1)
    spare = np.array([bucket(int(n)) for n in count]) - count
    open_to = step.inside & step.live & ~mask
    age = np.where(open_to, step.age, -1)
    order = np.argsort(-age, axis=1, kind="stable")
    rank = np.empty_like(order)
    np.put_along_axis(rank, order, np.arange(mask.shape[1])[None], 1)
    return np.asarray(mask | (open_to & (rank < spare[:, None])))
