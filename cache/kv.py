"""KV cache: keys and values by absolute position. Knows nothing of models, policies or tokens."""

from __future__ import annotations

import math
import os

import numpy as np
import torch
from torch import Tensor

from dllm.cache.plan import Access, ForwardPlan
from dllm.decoding.canvas import Array
from dllm.errors import DllmError


class CacheError(DllmError):
    """A KV cache larger than allowed; in the checking mode, a slot read before it was written."""


class KVCache:
    """One slot per absolute position, for every layer and every place that a row may take.

    Keys are stored after RoPE. A slot may be read once it is `live`, that is written since its row
    began. Places and slots are fixed: the memory is taken once, and on a CPU no page of it is real
    before something is written there. The slot behind the last one takes the writes of padding
    queries, so that a ragged batch needs no host synchronisation to be written.

    k, v: [L, places, num_kv_heads, slots + 1, D] on the device;  extra: what layer runners keep, by
    name [L, places, slots + 1, ...].  On the host, for the first `batch` places and `length` slots,
    which are in use now: live [B, T] bool;  written [B, T]: number of the row's forward (its clock
    [B], from 1) that wrote the slot last.

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
        self.places, self.slots = batch, length
        self.batch, self.length, self.limit = batch, length, limit
        self.reserved = 0  # bytes
        shape = (num_layers, batch, num_kv_heads, length + 1, head_dim)
        self.reserve(2 * math.prod(shape), dtype)
        self.k, self.v = (lazy_zeros(shape, dtype, device) for _ in range(2))
        self._live = np.zeros((batch, length), dtype=np.bool_)
        self._written = np.zeros((batch, length), dtype=np.int64)
        self._clock = np.zeros(batch, dtype=np.int64)
        self.extra: dict[str, Tensor] = {}
        check = os.environ.get("DLLM_CHECK_CACHE") == "1" if check is None else check
        # what was really written, layer by layer: [L, places, slots + 1]
        self.seen = torch.zeros(num_layers, batch, length + 1, dtype=torch.bool) if check else None

    @property
    def live(self) -> Array:
        """[B, T] bool: slots that were written since their row began."""
        return self._live[: self.batch, : self.length]

    @property
    def written(self) -> Array:
        """[B, T] the row's forward that wrote a slot last."""
        return self._written[: self.batch, : self.length]

    @property
    def clock(self) -> Array:
        """[B] forwards of each row."""
        return self._clock[: self.batch]

    @property
    def age(self) -> Array:
        """[B, T] forwards of its row since a slot was written (0: by the last one)."""
        return self.clock[:, None] - self.written

    @property
    def nbytes(self) -> int:
        """Bytes held by keys and values of all layers, and by what layer runners keep."""
        return self.k.nbytes + self.v.nbytes + sum(t.nbytes for t in self.extra.values())

    def reserve(self, count: int, dtype: torch.dtype) -> None:
        """Raise CacheError if `count` more elements of `dtype` break the limit."""
        self.reserved += count * dtype.itemsize
        if self.limit is not None and self.reserved > self.limit:
            raise CacheError(
                f"this request's cache takes {self.reserved / 2**20:.1f} MiB, but at most "
                f"{self.limit / 2**20:.1f} MiB are allowed: decode fewer rows at a time, a "
                "shorter canvas, or use cache='none'"
            )

    def keep_extra(self, name: str, per_slot: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """What a layer runner keeps under `name`: [L, B, T + 1, *per_slot], zeros at first.

        What is written for padding goes to position T, where nothing is ever read.
        """
        if name not in self.extra:
            shape = (*self.k.shape[:2], self.slots + 1, *per_slot)
            self.reserve(math.prod(shape), dtype)
            self.extra[name] = lazy_zeros(shape, dtype, self.k.device)
        return self.extra[name][:, : self.batch, : self.length + 1]

    # --- rows that join, move and leave ----------------------------------------------------------

    def use(self, batch: int, length: int) -> None:
        """From now on the first `batch` places are rows, and no row is longer than `length`."""
        self.batch, self.length = batch, length

    def begin(self, place: int) -> None:
        """A new row takes `place`: nothing there may be read any more."""
        if self._clock[place]:  # a hidden NaN is one all the same: its weight 0 times NaN is NaN
            for tensor in (self.k, self.v, *self.extra.values()):
                tensor[:, place] = 0
        self._live[place] = False
        self._written[place] = 0
        self._clock[place] = 0
        if self.seen is not None:
            self.seen[:, place] = False

    def move(self, source: int, target: int) -> None:
        """The row at `source` takes the place `target`."""
        for array in (self._live, self._written, self._clock):
            array[target] = array[source]
        used = slice(self.length)  # pages that nobody has written to stay unreal
        for tensor in (self.k, self.v):
            tensor[:, target, :, used] = tensor[:, source, :, used]
        for tensor in (*self.extra.values(), *([] if self.seen is None else [self.seen])):
            tensor[:, target, used] = tensor[:, source, used]

    def drop(self, length: Array) -> None:
        """Forget the slots of each row from `length` [B] on."""
        self._live[: self.batch] &= np.arange(self.slots) < length[:, None]

    # --- one forward -----------------------------------------------------------------------------

    def wrote(self, rows: Array | None, written: Array) -> None:
        """A forward writes the slots `written` [b, T] of `rows` [b] (None: all): they are live."""
        places = slice(self.batch) if rows is None else rows
        width = written.shape[1]
        self._clock[places] += 1
        self._live[places, :width] |= written
        now = self._clock[places][:, None]
        self._written[places, :width] = np.where(written, now, self._written[places, :width])

    def open(self, plan: ForwardPlan) -> Access:
        """Begin a forward: its queries' slots are live from now on, as layers write, then read.

        A plan that brings its access was made by a loop that keeps count by itself.
        """
        if plan.access is not None:
            return plan.access
        extent = self.length if plan.extent is None else plan.extent
        write = plan.valid if plan.write is None else plan.write
        if plan.write is not None and plan.valid is not None:
            write = plan.write & plan.valid
        slots = plan.pos if write is None else torch.where(write, plan.pos, self.slots)
        rows = None if plan.rows is None else plan.rows.cpu().numpy()
        written = np.zeros((len(slots), self.slots + 1), dtype=np.bool_)
        np.put_along_axis(written, slots.cpu().numpy(), values=True, axis=1)
        self.wrote(rows, written[:, : self.length])
        live = self.live if rows is None else self.live[rows]
        visible = torch.from_numpy(live[:, :extent].copy()).to(self.k.device)
        if plan.read is not None:
            visible = visible & plan.read[..., :extent]
        return Access(slots, plan.rows, extent, visible)

    def update(self, layer: int, access: Access, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write k, v [B, H, Q, D] of `layer` to their slots; return those [B, H, extent, D]."""
        # Write, then read: the queries of a forward see each other as they are now, and no padding
        # slot can show through, whatever the policy left out.
        self._put(self.k[layer], access, k)
        self.update_values(layer, access, v)
        if self.seen is not None:
            rows = self._rows(access.rows)[:, None].expand_as(access.slots)
            self.seen[layer, rows.cpu(), access.slots.cpu()] = True
            self.seen[layer, :, self.slots] = False
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
        rows = slice(self.batch) if access.rows is None else access.rows
        return self.k[layer, rows, :, : access.extent], self.v[layer, rows, :, : access.extent]

    def check_read(self, layer: int, access: Access, mask: Tensor | None) -> None:
        """In the checking mode: CacheError if `mask` [B, 1, Q, K] shows a slot never written."""
        if self.seen is None:
            return
        seen = self.seen[layer, self._rows(access.rows).cpu(), : access.extent]
        shown = torch.ones_like(seen) if mask is None else mask[:, 0].any(1).expand_as(seen).cpu()
        if bool((bad := shown & ~seen).any()):
            row, slot = bad.nonzero()[0].tolist()
            raise CacheError(f"layer {layer} reads slot {slot} of row {row}: it was never written")

    def _rows(self, rows: Tensor | None) -> Tensor:
        return torch.arange(self.batch, device=self.k.device) if rows is None else rows


def lazy_zeros(
    shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str = "cpu"
) -> Tensor:
    """Zeros; on a CPU the system gives a page of them only once it is written to."""
    if torch.device(device).type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    flat = np.zeros(math.prod(shape) * dtype.itemsize, dtype=np.uint8)
    return torch.from_numpy(flat).view(dtype).view(shape)
