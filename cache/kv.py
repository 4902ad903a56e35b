"""KV cache: keys and values by absolute position. Knows nothing of models, policies or tokens."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass

import torch
from torch import Tensor

from dllm.cache.plan import ForwardPlan
from dllm.errors import DllmError

STEP = 256  # slots that a cache grows by


class CacheError(DllmError):
    """A KV cache larger than allowed; in the checking mode, a slot read before it was written."""


@dataclass(frozen=True, slots=True)
class Access:
    """Access of one forward: where it writes and how far it reads.

    slots [B, Q]: slot of every query, the spare one for queries that do not write. rows [B]: the
    rows of the cache (None: all). extent: slots read are [0, extent).
    """

    slots: Tensor
    rows: Tensor | None
    extent: int


class KVCache:
    """One slot per absolute position, for every layer and row.

    Keys are stored after RoPE. A slot may be read once it is `live`, that is written since the
    request began. The slot behind the last one takes the writes of padding queries, so that a
    ragged batch needs no host synchronisation to be written. Slots are allocated as forwards reach
    them, STEP at a time.

    k, v: [L, B, num_kv_heads, slots + 1, D];  live: [B, T] bool;  written [B, T]: number of the
    row's forward (its clock [B], from 1) that wrote the slot last;  extra: what layer runners keep,
    by name [L, B, ...].

    With `check`, or DLLM_CHECK_CACHE=1 in the environment, every read is compared with what was
    really written. CacheError: `limit` bytes would not hold all slots.
    """

    def __init__(
        self,
        num_layers: int,
        batch: int,
        num_kv_heads: int,
        length: int,
        head_dim: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        limit: int | None = None,
        check: bool | None = None,
    ) -> None:
        self.length, self.limit = length, limit
        self.reserved = 0  # bytes that the whole request will take
        shape = (num_layers, batch, num_kv_heads, 1, head_dim)
        self.reserve(2 * math.prod(shape) * (length + 1), dtype)
        self.k = torch.zeros(shape, dtype=dtype, device=device)
        self.v = torch.zeros_like(self.k)
        self.live = torch.zeros(batch, length, dtype=torch.bool, device=device)
        self.written = torch.zeros(batch, length, dtype=torch.long, device=device)
        self.clock = torch.zeros(batch, dtype=torch.long, device=device)
        self.extra: dict[str, Tensor] = {}
        check = os.environ.get("DLLM_CHECK_CACHE") == "1" if check is None else check
        # what was really written, layer by layer: [L, B, T]
        self.seen = self.live.expand(num_layers, -1, -1).clone() if check else None

    @property
    def slots(self) -> int:
        """Slots that are allocated now."""
        return self.k.shape[3] - 1

    @property
    def nbytes(self) -> int:
        """Bytes held by keys and values of all layers, and by what layer runners keep."""
        return self.k.nbytes + self.v.nbytes + sum(t.nbytes for t in self.extra.values())

    @property
    def age(self) -> Tensor:
        """[B, T] forwards of its row since a slot was written (0: by the last one)."""
        return self.clock[:, None] - self.written

    def reserve(self, count: int, dtype: torch.dtype) -> None:
        """Raise CacheError if `count` more elements of `dtype` in the end break the limit."""
        self.reserved += count * dtype.itemsize
        if self.limit is not None and self.reserved > self.limit:
            raise CacheError(
                f"this request's cache takes {self.reserved / 2**20:.1f} MiB, but at most "
                f"{self.limit / 2**20:.1f} MiB are allowed: decode fewer rows at a time, a "
                "shorter canvas, or use cache='none'"
            )

    def keep_extra(self, name: str, per_slot: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """What a layer runner keeps under `name`: [L, B, length, *per_slot], zeros at first."""
        if name not in self.extra:
            shape = (*self.k.shape[:2], self.length, *per_slot)
            self.reserve(math.prod(shape), dtype)
            self.extra[name] = torch.zeros(shape, dtype=dtype, device=self.k.device)
        return self.extra[name]

    def keep(self, rows: Tensor, length: int) -> None:
        """Drop all batch rows but `rows` [n] (indices), and the slots from `length` on."""
        self.length = length
        self.k, self.v = self.k[:, rows], self.v[:, rows]
        self.live, self.written = self.live[rows, :length], self.written[rows, :length]
        self.clock = self.clock[rows]
        self.extra = {name: t[:, rows, :length] for name, t in self.extra.items()}
        if self.seen is not None:
            self.seen = self.seen[:, rows, :length]

    def drop(self, length: Tensor) -> None:
        """Forget the slots of each row from `length` [B] on."""
        self.live &= torch.arange(self.length, device=self.live.device) < length[:, None]

    def open(self, plan: ForwardPlan) -> Access:
        """Begin a forward: its queries' slots are live from now on, as layers write, then read."""
        extent = self.length if plan.extent is None else plan.extent
        self.grow(extent)
        write = plan.valid if plan.write is None else plan.write
        if plan.write is not None and plan.valid is not None:
            write = plan.write & plan.valid
        slots = plan.pos if write is None else torch.where(write, plan.pos, self.slots)
        rows = self._rows(plan.rows)
        marked = torch.zeros(len(rows), self.slots + 1, dtype=torch.bool, device=self.live.device)
        marked = marked.scatter_(1, slots, True)[:, : self.length]
        marked = torch.nn.functional.pad(marked, (0, self.length - marked.shape[1]))
        self.clock[rows] += 1
        self.live[rows] |= marked
        now = self.clock[rows][:, None]
        self.written[rows] = torch.where(marked, now, self.written[rows])
        return Access(slots, plan.rows, extent)

    def update(self, layer: int, access: Access, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write k, v [B, H, Q, D] of `layer` to their slots; return those [B, H, extent, D]."""
        # Write, then read: the queries of a forward see each other as they are now, and no padding
        # slot can show through, whatever the policy left out.
        self._put(self.k[layer], access, k)
        self.update_values(layer, access, v)
        if self.seen is not None:
            real = access.slots < self.slots
            rows = self._rows(access.rows)[:, None].expand_as(real)
            self.seen[layer, rows[real], access.slots[real]] = True
        return self.read(layer, access)

    def update_values(self, layer: int, access: Access, v: Tensor) -> None:
        """Write values [B, H, Q, D] only; the slots' keys stay as they are."""
        self._put(self.v[layer], access, v)

    def _put(self, kept: Tensor, access: Access, new: Tensor) -> None:
        if access.rows is None:
            kept.scatter_(2, access.slots[:, None, :, None].expand_as(new), new)
        else:
            kept[access.rows[:, None], :, access.slots] = new.transpose(1, 2)

    def read(self, layer: int, access: Access) -> tuple[Tensor, Tensor]:
        """Keys and values [B, H, extent, D] of `layer`; a view where all rows are meant."""
        rows = slice(None) if access.rows is None else access.rows
        return self.k[layer, rows, :, : access.extent], self.v[layer, rows, :, : access.extent]

    def check_read(self, layer: int, access: Access, mask: Tensor | None) -> None:
        """In the checking mode: CacheError if `mask` [B, 1, Q, K] shows a slot never written."""
        if self.seen is None:
            return
        seen = self.seen[layer, self._rows(access.rows), : access.extent]
        shown = torch.ones_like(seen) if mask is None else mask[:, 0].any(1).expand_as(seen)
        if bool((bad := shown & ~seen).any()):
            row, slot = bad.nonzero()[0].tolist()
            raise CacheError(f"layer {layer} reads slot {slot} of row {row}: it was never written")

    def _rows(self, rows: Tensor | None) -> Tensor:
        return torch.arange(len(self.live), device=self.live.device) if rows is None else rows

    def grow(self, extent: int) -> None:
        """Have at least `extent` slots allocated."""
        if extent <= self.slots:
            return
        layers, batch, heads, _, size = self.k.shape
        had, slots = self.slots, min(-(-extent // STEP) * STEP, max(self.length, extent))
        grown = []
        for old in (self.k, self.v):
            new = old.new_zeros(layers, batch, heads, slots + 1, size)
            new[:, :, :, :had] = old[:, :, :, :had]
            grown.append(new)
        self.k, self.v = grown
