"""What one forward pass does. Written by a cache policy, read by the decoder; tensors only."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Plan:
    """Positions to compute and rows to predict from, for a batch of B rows.

    pos    [B, Q] int64: absolute position of every query.
    head   [B, R] int64: indices *into the query axis* whose logits are wanted; the model's shift is
           already applied, so row r of the logits predicts the token the caller asked for.
    valid  [B, Q] bool or None (all real): padding queries neither write nor are read.
    write  [B, Q] bool or None (all valid): which queries store their keys and values.
    read   [B, T] or [L, B, T] bool or None: further restricts which live slots may be read.
    """

    pos: Tensor
    head: Tensor
    valid: Tensor | None = None
    write: Tensor | None = None
    read: Tensor | None = None

    @classmethod
    def full(cls, length: int, batch: int = 1, device: torch.device | str = "cpu") -> Plan:
        """Query and predict every position of `batch` rows of equal `length`."""
        pos = torch.arange(length, device=device).expand(batch, length)
        return cls(pos=pos, head=pos)
