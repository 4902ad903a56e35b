"""State that components keep between steps, declared by name, held row by row.

A component says what a fresh row holds; the batch makes, moves and drops the rows. Planners and
cache policies keep numpy arrays on the host, all others tensors on the device.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dllm.decoding.canvas import Array


@dataclass(frozen=True, slots=True)
class StateField:
    """One array of a component's state: [B, *shape], or [B, T, *shape] if `per_position`.

    value: what a fresh row holds. dtype: a name that numpy and torch share. On the device T counts
    one position more than the canvas has, which takes what is written for padding.
    """

    value: float
    dtype: str = "int64"
    per_position: bool = False
    shape: tuple[int, ...] = ()


Fields = Mapping[str, StateField]


@dataclass(slots=True, eq=False)
class HostState:
    """The state of one component, for all rows of a batch: arrays on the host."""

    fields: Fields
    values: dict[str, Array]

    @classmethod
    def fresh(cls, fields: Fields, rows: int, size: int) -> HostState:
        return cls(fields, {name: _fresh(f, rows, size) for name, f in fields.items()})

    def take(self, rows: Array, size: int) -> None:
        """Hold the rows `rows` [n] (indices) instead, -1 for a fresh one, and `size` positions."""
        for name, f in self.fields.items():
            old, new = self.values[name], _fresh(f, len(rows), size)
            kept = rows >= 0
            if f.per_position:
                most = min(size, old.shape[1])
                new[kept, :most] = old[rows[kept], :most]
            else:
                new[kept] = old[rows[kept]]
            self.values[name] = new


def _fresh(f: StateField, rows: int, size: int) -> Array:
    return np.full(_shape(f, rows, size), f.value, dtype=f.dtype)


@dataclass(slots=True, eq=False)
class DeviceState:
    """The state of one component, for all rows of a batch: tensors on the device.

    windows: how many of its rows belong to a row of the batch.
    """

    fields: Fields
    values: dict[str, Tensor]
    windows: int = 1

    @classmethod
    def fresh(
        cls, fields: Fields, rows: int, size: int, device: torch.device, windows: int = 1
    ) -> DeviceState:
        made = {
            name: torch.full(
                _shape(f, rows * windows, size + 1),
                f.value,
                dtype=getattr(torch, f.dtype),
                device=device,
            )
            for name, f in fields.items()
        }
        return cls(fields, made, windows)

    def take(self, rows: Array, size: int, windows: int = 1) -> None:
        """Hold the rows `rows` [n] (indices) instead, -1 for a fresh one, `size` positions, and
        `windows` rows for each of them.
        """
        if not self.fields:
            return
        device = next(iter(self.values.values())).device
        new = DeviceState.fresh(self.fields, len(rows), size, device, windows)
        target = torch.from_numpy((rows >= 0).nonzero()[0]).to(device)
        source = torch.from_numpy(rows[rows >= 0]).to(device)
        both = min(windows, self.windows)
        for name, f in self.fields.items():
            old, fresh = self.values[name], new.values[name]
            old = old.view(-1, self.windows, *old.shape[1:])[source, :both]
            fresh = fresh.view(-1, windows, *fresh.shape[1:])
            if f.per_position:
                most = min(size, old.shape[2] - 1)
                fresh[target, :both, :most] = old[:, :, :most]
            else:
                fresh[target, :both] = old
        self.values, self.windows = new.values, windows


def _shape(f: StateField, rows: int, size: int) -> tuple[int, ...]:
    return (rows, *([size] if f.per_position else []), *f.shape)
