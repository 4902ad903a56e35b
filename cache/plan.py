"""Plan of one forward pass: written by a cache policy, read by the decoder; tensors only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor


class Layer(Protocol):
    """Layer of the model, as a `LayerRunner` may use it; the residual stream is its own."""

    index: int

    def heads(self, x: Tensor, run: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated queries [B, H, Q, D], keys and values [B, H_kv, Q, D] of rows x [B, Q, d]."""
        ...

    def values(self, x: Tensor) -> Tensor:
        """The values [B, H_kv, Q, D] of `heads` alone."""
        ...

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """The attention branch [B, Q, d] of queries q over keys and values [B, H_kv, K, D]."""
        ...

    def feed(self, x: Tensor) -> Tensor:
        """The feed-forward branch [B, Q, d] of rows x [B, Q, d]."""
        ...


class LayerRunner(Protocol):
    """Takes the rows through one layer in its own way: other rows, cached branches, probes.

    `run` is the decoder's `LayerInputs`: the rows' positions, the KV cache, masks. What comes out
    of the last layer must be the rows of the plan, in its order.
    """

    def layer(self, layer: Layer, x: Tensor, run: Any) -> tuple[Tensor, Any]:
        """Rows x [B, Q, d] behind `layer`, and the run of the rows that go on."""
        ...


def at_positions(pos: Tensor, which: Tensor, size: int) -> Tensor:
    """[B, size] bool: the positions among pos [B, N] that `which` [B, N] names."""
    found = torch.zeros(len(pos), size + 1, dtype=torch.bool, device=pos.device)
    return found.scatter_(1, torch.where(which, pos, size), True)[:, :size]


@dataclass(frozen=True, slots=True)
class Access:
    """Access of one forward to a KV cache: where it writes, and what it reads.

    slots [B, Q]: slot of every query, a spare one for queries that do not write. rows [B]: the rows
    of the cache (None: all, in order). extent: slots read are [0, extent). visible [B, extent] or
    [L, B, extent] bool: those that may be read (None: all). whole: every row computes all its
    positions (False: not known).
    """

    slots: Tensor
    rows: Tensor | None
    extent: int
    visible: Tensor | None = None
    whole: bool = False


@dataclass(frozen=True, slots=True)
class ForwardPlan:
    """Positions to compute and rows to predict from, for a batch of B rows.

    pos    [B, Q] int64: absolute position of every query.
    head   [B, R] int64: indices *into the query axis* whose logits are wanted; the model's shift is
           already applied, so row r of the logits predicts the token the caller asked for.
    valid  [B, Q] bool or None (all real): padding queries neither write nor are read.
    write  [B, Q] bool or None (all valid): which queries store their keys and values.
    read   [B, T] or [L, B, T] bool or None: further restricts which live slots may be read.
    rows   [B] int64 or None (all, in order): the rows of the KV cache that these B rows are.
    extent: slots from here on are not read (None: all are); no query lies behind it.
    runner: how rows go through the layers (None: as in training).

    The decode loop, which knows on the host what stands in the KV cache, also fills these; without
    them a forward finds out by looking at the tensors, which waits for the device:
    access: to the KV cache; it takes the place of write and read.
    masked: whether a query of this forward may not see some key (None: not known).
    """

    pos: Tensor
    head: Tensor
    valid: Tensor | None = None
    write: Tensor | None = None
    read: Tensor | None = None
    rows: Tensor | None = None
    extent: int | None = None
    runner: LayerRunner | None = None
    access: Access | None = None
    masked: bool | None = None

    @classmethod
    def full(cls, length: int, batch: int = 1, device: torch.device | str = "cpu") -> ForwardPlan:
        """Query and predict every position of `batch` rows of equal `length`."""
        pos = torch.arange(length, device=device).expand(batch, length)
        return cls(pos=pos, head=pos)
