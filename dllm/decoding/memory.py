"""What the components of a batch remember between steps, moved along as rows join and leave."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch

from dllm.decoding.canvas import Array
from dllm.decoding.methods import Group, Methods, same
from dllm.decoding.state import DeviceState, HostState
from dllm.samplers.transforming import State

Kept = TypeVar("Kept", HostState, DeviceState)


@dataclass(frozen=True, slots=True)
class ComponentStates:
    """One state for each group of `methods`, in their order. kl: of `candidates.divergence`."""

    methods: Methods | None = None
    planners: Sequence[HostState] = ()
    rules: Sequence[DeviceState] = ()
    stop_rules: Sequence[DeviceState] = ()
    transforms: Sequence[DeviceState] = ()
    kl: State = field(default_factory=dict)

    def take(
        self, methods: Methods, rows: Array, size: int, windows: int, device: torch.device
    ) -> ComponentStates:
        """Of the batch that goes on with `rows` [n] (indices of before, -1 for a new one).

        size: positions; windows: of a row. What no row needs any more is forgotten.
        """
        count = len(rows)

        def states(
            kind: str, make: Callable[[Any], Kept], take: Callable[[Kept], None]
        ) -> list[Kept]:
            found = []
            for group in getattr(methods, kind):
                state = self._of(kind, group)
                if state is None:
                    state = make(getattr(group.part, "fields", {}))
                else:
                    take(state)
                found.append(state)
            return found

        def on_device(kind: str, each: int) -> list[DeviceState]:
            return states(
                kind,
                lambda fields: DeviceState.fresh(fields, count, size, device, each),
                lambda state: state.take(rows, size, each),
            )

        kl = self.kl
        if kl:
            index = torch.from_numpy(np.maximum(rows, 0)).to(device)
            fresh = torch.from_numpy(rows < 0).to(device)
            kl = {name: t[index] for name, t in kl.items()}
            kl["valid"] = kl["valid"] & ~fresh[:, None]
        return ComponentStates(
            methods,
            states(
                "planners",
                lambda fields: HostState.fresh(fields, count, size),
                lambda state: state.take(rows, size),
            ),
            on_device("rules", windows),
            on_device("stop_rules", 1),
            on_device("transforms", 1),
            kl,
        )

    def widen(self, shape: tuple[int, ...], windows: int) -> None:
        """Have room for `windows` windows of each row of a canvas of this shape."""
        for state in self.rules:
            state.take(np.arange(shape[0]), shape[1], windows)

    def noted(self) -> list[dict[str, Any]]:
        """All that is remembered now; nothing in it changes any more."""
        return [dict(values) for values in (*self._values(), self.kl)]

    def put_back(self, noted: Sequence[dict[str, Any]], moved: Array) -> None:
        """Remember what was `noted` in the rows that have not `moved` [B]."""
        for values, old in zip((*self._values(), self.kl), noted, strict=True):
            for name in values.keys() & old.keys():
                values[name] = kept(values[name], old[name], moved)

    def _values(self) -> Iterator[dict[str, Any]]:
        yield from (state.values for state in self.planners)
        for states in (self.rules, self.stop_rules, self.transforms):
            yield from (state.values for state in states)

    def _of(self, kind: str, group: Group[Any]) -> Any:
        """The state of a component that does the same as the group's; None if there is none."""
        if self.methods is None:
            return None
        known = zip(getattr(self.methods, kind), getattr(self, kind), strict=True)
        return next((state for old, state in known if same(old.part, group.part)), None)


def kept(new: Any, old: Any, moved: Array) -> Any:
    """`new` [B * N, ...] in the rows that have `moved` [B], `old` in the others, on host or device.

    Where the two differ in size they are padded with zeros behind.
    """
    if isinstance(new, np.ndarray):
        return np.where(moved.reshape(-1, *[1] * (new.ndim - 1)), new, old)
    size = [max(a, b) for a, b in zip(new.shape, old.shape, strict=True)]
    new, old = (grown(t, size) for t in (new, old))
    which = torch.from_numpy(moved).to(new.device).repeat_interleave(size[0] // len(moved))
    return torch.where(which.view(-1, *[1] * (new.ndim - 1)), new, old)


def grown(t: torch.Tensor, size: list[int]) -> torch.Tensor:
    """`t` with zeros behind, up to `size`."""
    if list(t.shape) == size:
        return t
    wide = t.new_zeros(size)
    wide[tuple(slice(n) for n in t.shape)] = t
    return wide
