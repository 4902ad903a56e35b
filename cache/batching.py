"""Forwards of one step, from what a policy wants computed [B, T]. No policy, no model."""

from __future__ import annotations

import torch
from torch import Tensor

from dllm.cache.plan import ForwardPlan
from dllm.cache.policy import Query, Step
from dllm.decoding.canvas import positions

SMALLEST = 8  # queries of the least bucket; the others are powers of two


def plans(
    query: Query, step: Step, want: Tensor, *, stored: bool, buckets: bool
) -> list[ForwardPlan]:
    """The forwards that compute `query` and predict the positions `want` [B, T], one or two.

    Rows that are refreshed go into a forward of their own, so that they do not widen the others';
    without a KV cache all rows are computed whole, in one. buckets: pad query counts to 8, 16, 32,
    ...
    """
    pos, real = positions(want)
    # Some models (Dream) predict position p from the row of p - 1, as AR models do: shift is 1
    # there, and the rows that predict are not the positions that are wanted.
    rows = torch.zeros_like(want)
    rows[:, : want.shape[1] - step.shift] = want[:, step.shift :]
    rows[:, 0] |= want[:, 0]
    mask = (query.pos | rows) & step.inside
    if buckets and query.stale:
        mask = topped_up(mask, step)
    head = (pos - step.shift).clamp(min=0).where(real, 0)
    whole = (mask == step.inside).all(1)
    if not stored or bool(whole.all()):  # the host decides how many forwards there are
        return [_plan(query, step, step.inside, head, None, buckets=False)]
    if not bool(whole.any()):
        return [_plan(query, step, mask, head, None, buckets)]
    full, part = whole.nonzero()[:, 0], (~whole).nonzero()[:, 0]
    return [
        _plan(query, step, step.inside, head, full, buckets=False),
        _plan(query, step, mask, head, part, buckets),
    ]


def _plan(
    query: Query, step: Step, mask: Tensor, head: Tensor, rows: Tensor | None, buckets: bool
) -> ForwardPlan:
    """The forward of `rows` [b] (None: all B) that computes the positions in `mask` [B, T]."""
    live, write, read = step.live, query.write, query.read
    if rows is not None:
        mask, head, live = mask[rows], head[rows], live[rows]
        write = None if write is None else write[rows]
        read = None if read is None else read[..., rows, :]
    pos, valid = positions(mask)
    if buckets and pos.shape[1] < (width := bucket(pos.shape[1])):
        pos, valid = (torch.nn.functional.pad(t, (0, width - t.shape[1])) for t in (pos, valid))
    reach = (live | mask).any(0).nonzero()
    index = mask.cumsum(1) - 1  # [b, T] place of a position on the query axis
    return ForwardPlan(
        pos=pos,
        head=index.gather(1, head).clamp(min=0),
        valid=None if bool(valid.all()) else valid,
        write=None if write is None else write.gather(1, pos),
        read=read,
        rows=rows,
        extent=int(reach[-1]) + 1,
        runner=query.runner,
    )


def bucket(count: int) -> int:
    """The least of 8, 16, 32, ... that is not below `count`."""
    return max(SMALLEST, 1 << (count - 1).bit_length())


def topped_up(mask: Tensor, step: Step) -> Tensor:
    """`mask` [B, T] with each row filled up to its bucket by its stalest positions.

    A row's own count decides, not the batch's widest, so that its result is its own.
    """
    count = mask.sum(1)
    sizes = torch.tensor([bucket(n) for n in range(mask.shape[1] + 1)], device=mask.device)
    spare = sizes[count] - count
    open_to = step.inside & step.live & ~mask
    order = step.age.masked_fill(~open_to, -1).argsort(dim=1, descending=True, stable=True)
    rank = order.argsort(dim=1)
    return mask | (open_to & (rank < spare[:, None]))
