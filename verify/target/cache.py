"""KV cache of the target: keys and values by slot, append-only, with gaps. No model, no tokens.

All rows and layers share one slot axis. A slot that a row does not use is a gap: its keys stay
where they are and no query may see them. Positions are stored beside the slots, because a gap
moves slots and positions apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

SMALLEST = 64  # slots


def capacity(slots: int) -> int:
    """Slots to hold memory for: the next power of two."""
    return max(SMALLEST, 1 << (slots - 1).bit_length())


@dataclass(slots=True)
class Axis:
    """Slots taken so far, by all rows and layers alike; a pass writes behind them."""

    used: int = 0


class SlotLayer(CacheLayerMixin):  # type: ignore[no-untyped-call]
    """Keys and values [B, H, capacity, D] of one layer."""

    is_sliding = False  # it keeps everything: a window is a matter of the mask

    def __init__(self, axis: Axis) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.axis = axis

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        slots = capacity(self.axis.used + key_states.shape[2])
        self.keys = _longer(key_states[:, :, :0], slots)
        self.values = _longer(value_states[:, :, :0], slots)
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write a pass's keys and values [B, H, Q, D] behind the used slots; views of all."""
        start, end = self.axis.used, self.axis.used + key_states.shape[2]
        if self.keys is None or self.values is None:
            self.lazy_initialization(key_states, value_states)
        elif end > self.keys.shape[2]:
            self.keys = _longer(self.keys[:, :, :start], capacity(end))
            self.values = _longer(self.values[:, :, :start], capacity(end))
        assert self.keys is not None
        assert self.values is not None
        self.keys[:, :, start:end] = key_states
        self.values[:, :, start:end] = value_states
        return self.keys[:, :, :end], self.values[:, :, :end]

    def gather(self, slots: Tensor) -> None:
        """Move slots [B, n] of each row to its front."""
        for states in (self.keys, self.values):
            if states is not None:
                index = slots.to(states.device)[:, None, :, None]
                moved = states.gather(2, index.expand(-1, states.shape[1], -1, states.shape[3]))
                states[:, :, : slots.shape[1]] = moved

    def select(self, rows: Tensor) -> None:
        """Keep these rows [n]."""
        if self.keys is not None and self.values is not None:
            self.keys = self.keys.index_select(0, rows.to(self.keys.device))
            self.values = self.values.index_select(0, rows.to(self.values.device))

    def get_seq_length(self) -> int:
        return self.axis.used

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.axis.used + query_length, 0

    def get_max_length(self) -> int:
        return -1

    get_max_cache_shape = get_max_length  # its name in earlier releases of transformers 5


class Slots(Cache):
    """The cache of a batch. `commit` makes of a pass's slots what the rows keep, and gaps.

    valid, pos: [B, capacity], of which the first `used` count.  lengths [B]: committed tokens of
    each row, so also the position of its next one.
    horizon: how many positions back any layer sees, itself included (None: all the way); what is
    farther back is dropped by `compact`.  share: gaps among the slots that call for it.
    """

    def __init__(
        self, rows: int, device: torch.device, horizon: int | None = None, share: float = 0.5
    ) -> None:
        self.axis = Axis()
        # layers know the axis, not this object: a cycle would hold the memory until a collection
        super().__init__(layer_class_to_replicate=partial(SlotLayer, self.axis))  # type: ignore[arg-type]
        self.valid = torch.zeros(rows, SMALLEST, dtype=torch.bool, device=device)
        self.pos = torch.zeros(rows, SMALLEST, dtype=torch.long, device=device)
        self.lengths = np.zeros(rows, np.int64)
        self.ends = np.zeros(rows, np.int64)  # behind the last valid slot of each row
        self.horizon, self.share = horizon, share

    @property
    def used(self) -> int:
        """Slots taken by all rows."""
        return self.axis.used

    @property
    def whole(self) -> bool:
        """True if every row has all its tokens in slots 0, 1, ... without gaps."""
        nothing_dropped = self.horizon is None or self.used < self.horizon
        return nothing_dropped and bool((self.lengths == self.used).all())

    @property
    def longest(self) -> int:
        """Slots needed by the row that needs most."""
        return int(self._needed().max(initial=0))

    @torch.inference_mode()
    def reserve(self, width: int) -> None:
        """Make space for a pass of `width` queries per row: compact before the memory grows, unless
        so few slots are gaps that it would be due again soon."""
        budget = self.valid.shape[1]
        gaps = self.used - self.longest
        if self.used + width > budget and gaps >= budget // 4:
            self.compact()
        if self.used + width > budget:
            slots = capacity(self.used + width)
            self.valid, self.pos = _longer(self.valid, slots), _longer(self.pos, slots)

    @torch.inference_mode()
    def commit(self, pos: Tensor, keep: NDArray[np.bool_]) -> None:
        """Of the last pass, at positions pos [B, W], keep the slots keep [B, W]; the others are
        gaps, and free where no row keeps one behind them."""
        counts = keep.sum(1)
        last = keep.shape[1] - keep[:, ::-1].argmax(1)  # behind the last slot that is kept
        width = int(last[counts > 0].max(initial=0))
        start, end = self.used, self.used + width
        self.pos[:, start:end] = pos[:, :width]
        self.valid[:, start:end] = torch.from_numpy(keep[:, :width])
        self.lengths += counts
        self.ends = np.where(counts > 0, start + last, self.ends)
        self.axis.used = end
        self._tidy()

    @torch.inference_mode()
    def compact(self) -> None:
        """Move every row's visible slots to the front, in order."""
        longest = self.longest
        if longest == self.used:
            return
        valid, pos = self.valid[:, : self.used], self.pos[:, : self.used]
        if self.horizon is not None:
            first = torch.from_numpy(self.lengths - self.horizon + 1).to(pos.device)
            valid = valid & (pos >= first[:, None])
        order = (~valid).byte().argsort(dim=1, stable=True)[:, :longest]
        for layer in cast("list[SlotLayer]", self.layers):
            layer.gather(order)
        self.valid[:, :longest] = valid.gather(1, order)
        self.pos[:, :longest] = pos.gather(1, order)
        self.axis.used, self.ends = longest, self._needed()

    @torch.inference_mode()
    def select(self, rows: Sequence[int]) -> None:
        """Keep these rows, in this order."""
        if list(rows) == list(range(len(self.lengths))):
            return
        index = torch.tensor(rows, dtype=torch.long, device=self.valid.device)
        for layer in cast("list[SlotLayer]", self.layers):
            layer.select(index)
        self.valid, self.pos = self.valid[index], self.pos[index]
        chosen = np.asarray(rows, np.int64)
        self.lengths, self.ends = self.lengths[chosen], self.ends[chosen]
        self.axis.used = int(self.ends.max(initial=0))
        self._tidy()

    def _tidy(self) -> None:
        if self.used - self.longest > self.share * self.used:
            self.compact()

    def _needed(self) -> NDArray[np.int64]:
        if self.horizon is None:
            return self.lengths.copy()
        return np.minimum(self.lengths, self.horizon - 1)


def _longer(states: Tensor, slots: int) -> Tensor:
    """A copy with memory for `slots` on the slot axis (1 of masks, 2 of keys and values)."""
    axis = 1 if states.ndim == 2 else 2
    shape = list(states.shape)
    shape[axis] = slots
    grown = states.new_empty(shape)
    grown.narrow(axis, 0, states.shape[axis]).copy_(states)
    return grown
