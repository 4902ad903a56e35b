"""Cache policy: says which positions the next forward computes, from numpy arrays on the host."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar, Protocol

import numpy as np

from dllm.cache.plan import LayerRunner
from dllm.checks import check_whole
from dllm.decoding.canvas import Array, Canvas
from dllm.decoding.state import Fields, StateField

State = dict[str, Array]  # arrays [B, ...] that a policy keeps between steps, by name


def nothing_kept(name: str) -> None:
    """The `kept` of a step without a KV cache."""


@dataclass(frozen=True)
class Step:
    """State of B rows before a forward, as a policy sees it.

    start, end [B]: from the first window's start to the last one's end. want [B, T]: positions
    whose predictions the step asks for. shift: 1 where the row of p - 1 predicts p. index [B]:
    steps the row has made. changed [B, T]: positions that got, lost or changed their token in the
    last one. confidence [B, T]: of the proposal last seen at a position, 0 where there was none
    (all 0 unless the policy `wants_confidence`). live, age [B, T]: slots that hold keys and values,
    and forwards since they were written. kept: reads what a layer runner keeps on the device under
    a name, [L, B, T, ...], None before its first forward; waits for the device.
    """

    canvas: Canvas
    start: Array
    end: Array
    want: Array
    shift: int
    index: Array
    changed: Array
    confidence: Array
    live: Array
    age: Array
    kept: Callable[[str], Array | None] = field(default=nothing_kept)

    @property
    def inside(self) -> Array:
        """[B, T] positions of the row, padding left out."""
        return self.canvas.inside

    @cached_property
    def window(self) -> Array:
        """[B, T] positions in [start, end)."""
        return self.between(self.start, self.end)

    def between(self, start: Array | int, end: Array) -> Array:
        """[B, T] positions of the row in [start, end); start, end [B], or one number."""
        first = start[:, None] if isinstance(start, np.ndarray) else start
        pos = self.canvas.pos
        return np.asarray(self.inside & (pos >= first) & (pos < end[:, None]))


@dataclass(frozen=True, slots=True)
class Runs:
    """A layer runner to come: `make(**tensors)`, once its `arrays` have reached the device."""

    make: Callable[..., LayerRunner]
    arrays: Mapping[str, Array]


@dataclass(frozen=True, slots=True)
class Query:
    """A policy's answer. Rows that predict what is wanted are computed whatever it says.

    pos [B, T]: positions to compute; a row with all of them is refreshed. want [B, T] or None: the
    part of what the step wants that is predicted now, a masked position of each row's first window
    at least. write [B, T] or None (all): which of them store keys and values. read [B, T] or None:
    further restricts which live slots are read. stale: spare places of a bucket
    (`DecodeConfig.buckets`) may compute more positions, the stalest first. runner: see plan.py.
    """

    pos: Array
    want: Array | None = None
    write: Array | None = None
    read: Array | None = None
    stale: bool = True
    runner: Runs | None = None


class CachePolicy(Protocol):
    """Decides, forward by forward, which positions are computed; see `PolicyBase` for defaults.

    uses_kv: keys and values are kept. freezes: those of a committed token may never be computed
    again, so that a rule which masks or replaces it cannot be used. narrows: the step may get
    fewer predictions than it wants. wants_confidence: `Step.confidence` is kept. fields: the state
    that `query` keeps, and what a fresh row holds of it.
    """

    @property
    def uses_kv(self) -> bool: ...
    @property
    def freezes(self) -> bool: ...
    @property
    def narrows(self) -> bool: ...
    @property
    def wants_confidence(self) -> bool: ...
    @property
    def fields(self) -> Fields: ...

    def query(self, step: Step, state: State) -> Query:
        """What the next forward computes. `state` is kept for the policy from step to step."""
        ...


# What `entered` keeps: no window starts at -1, so that a fresh row enters one.
SINCE_ENTERED = {"start": StateField(-1), "since": StateField(0)}


class PolicyBase:
    """The usual policy keeps keys and values, and predicts all that is wanted."""

    uses_kv: ClassVar[bool] = True
    freezes: ClassVar[bool] = False
    narrows: ClassVar[bool] = False
    wants_confidence: ClassVar[bool] = False
    fields: ClassVar[Mapping[str, StateField]] = {}


class Facts(Protocol):
    """Facts of a model that `bind` may ask for: the blocks its attention is causal in, or None."""

    @property
    def block_length(self) -> int | None: ...


@dataclass(frozen=True)
class Refreshed(PolicyBase):
    """A policy with the option `refresh`: forwards between two that compute all (None: never)."""

    refresh: int | None = None

    def __post_init__(self) -> None:
        check_whole("refresh", self.refresh, 1, none=True)


def entered(step: Step, state: State) -> Array:
    """[B] rows whose window is a new one, the first included; counts the forwards since then.

    state["since"] [B]: 0 in the forward that enters a window, 1 in the next one, ... The policy's
    `fields` are SINCE_ENTERED.
    """
    new = state["start"] != step.start
    state["since"] = np.where(new, 0, state["since"] + 1)
    state["start"] = step.start
    return np.asarray(new)


def due(count: Array, every: int | None) -> Array:
    """[B] whether count [B] is a multiple of `every` but not 0; never if that is None."""
    if every is None:
        return np.zeros_like(count, dtype=np.bool_)
    return np.asarray((count > 0) & (count % every == 0))
