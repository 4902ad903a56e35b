"""Keys and values by absolute position. Knows nothing of models, policies or tokens."""

from __future__ import annotations

import torch
from torch import Tensor


class KVStore:
    """One slot per absolute position, for every layer and row.

    Keys are stored after RoPE. A slot may be read once it is `live`, that is written since the
    request began. The slot behind the last one takes the writes of padding queries, so that a
    ragged batch needs no host synchronisation to be written.

    k, v: per layer [B, num_kv_heads, T + 1, D];  live: [B, T] bool.
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
    ) -> None:
        shape = (num_layers, batch, num_kv_heads, length + 1, head_dim)
        self.length = length
        self.k = torch.zeros(shape, dtype=dtype, device=device)
        self.v = torch.zeros(shape, dtype=dtype, device=device)
        self.live = torch.zeros(batch, length, dtype=torch.bool, device=device)

    @property
    def nbytes(self) -> int:
        """Bytes held by keys and values of all layers."""
        return self.k.nbytes + self.v.nbytes

    def keep(self, rows: Tensor) -> None:
        """Drop all batch rows but `rows` [n] (indices)."""
        self.k, self.v, self.live = self.k[:, rows], self.v[:, rows], self.live[rows]

    def slots(self, pos: Tensor, write: Tensor | None) -> Tensor:
        """Slot [B, Q] each query writes to; queries that may not write go to the spare slot."""
        return pos if write is None else torch.where(write, pos, self.length)

    def mark_live(self, slots: Tensor) -> None:
        """Declare `slots` [B, Q] (as returned by `slots`) readable for the rest of the request."""
        live = torch.nn.functional.pad(self.live, (0, 1))
        self.live = live.scatter(1, slots, True)[:, : self.length]

    def update(self, layer: int, slots: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write k, v [B, H, Q, D] of `layer` into `slots` [B, Q]; return all T slots of it."""
        index = slots[:, None, :, None].expand_as(k)
        self.k[layer].scatter_(2, index, k)
        self.v[layer].scatter_(2, index, v)
        return self.k[layer, :, :, : self.length], self.v[layer, :, :, : self.length]
