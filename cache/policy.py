"""Cache policy: says which positions the next forward computes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from dllm.cache.plan import LayerRunner
from dllm.checks import check_whole
from dllm.decoding.canvas import Canvas

State = dict[str, Tensor]  # tensors [B, ...] that a policy keeps between steps, by name


@dataclass(frozen=True, slots=True)
class Step:
    """State of B rows before a forward, as a policy sees it.

    start, end [B]: from the first window's start to the last one's end. want [B, T]: positions
    whose predictions the step asks for. shift: 1 where the row of p - 1 predicts p. index [B]:
    steps the row has made. changed [B, T]: positions that got or lost their token in the last one.
    confidence [B, T]: of the proposal last seen at a position, 0 where there was none (all 0 unless
    the policy `wants_confidence`). live, age [B, T], extra: of the KV cache, see KVCache.
    """

    canvas: Canvas
    start: Tensor
    end: Tensor
    want: Tensor
    shift: int
    index: Tensor
    changed: Tensor
    confidence: Tensor
    live: Tensor
    age: Tensor
    extra: Mapping[str, Tensor]

    @property
    def inside(self) -> Tensor:
        """[B, T] positions of the row, padding left out."""
        return self.canvas.pos < self.canvas.length[:, None]

    @property
    def window(self) -> Tensor:
        """[B, T] positions in [start, end)."""
        return self.between(self.start, self.end)

    def between(self, start: Tensor | int, end: Tensor) -> Tensor:
        """[B, T] positions of the row in [start, end); start, end [B], or one number."""
        if isinstance(start, Tensor):
            start = start[:, None]
        return self.inside & (self.canvas.pos >= start) & (self.canvas.pos < end[:, None])


@dataclass(frozen=True, slots=True)
class Query:
    """A policy's answer. Rows that predict what is wanted are computed whatever it says.

    pos [B, T]: positions to compute; a row with all of them is refreshed. want [B, T] or None: the
    part of what the step wants that is predicted now, a masked position of each row's first window
    at least. write [B, T] or None (all): which of them store keys and values. read [B, T], [L, B,
    T] or None: further restricts which live slots are read. stale: spare places of a bucket
    (`DecodeConfig.buckets`) may compute more positions, the stalest first. runner: see plan.py.
    """

    pos: Tensor
    want: Tensor | None = None
    write: Tensor | None = None
    read: Tensor | None = None
    stale: bool = True
    runner: LayerRunner | None = None


class CachePolicy(Protocol):
    """Decides, forward by forward, which positions are computed; see `PolicyBase` for defaults.

    uses_kv: keys and values are kept. freezes: those of a committed token may never be computed
    again, so that a rule which masks it again cannot be used. narrows: the step may get
    fewer predictions than it wants. wants_confidence: `Step.confidence` is kept.
    """

    @property
    def uses_kv(self) -> bool: ...
    @property
    def freezes(self) -> bool: ...
    @property
    def narrows(self) -> bool: ...
    @property
    def wants_confidence(self) -> bool: ...

    def query(self, step: Step, state: State) -> Query:
        """What the next forward computes. `state` is kept for the policy from step to step."""
        ...


class PolicyBase:
    """The usual policy keeps keys and values, and predicts all that is wanted."""

    uses_kv: ClassVar[bool] = True
    freezes: ClassVar[bool] = False
    narrows: ClassVar[bool] = False
    wants_confidence: ClassVar[bool] = False


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


def entered(step: Step, state: State) -> Tensor:
    """[B] rows whose window is a new one, the first included; counts the forwards since then.

    state["since"] [B]: 0 in the forward that enters a window, 1 in the next one, ...
    """
    new = torch.ones_like(step.start, dtype=torch.bool)
    since = torch.zeros_like(step.start)
    if "start" in state:
        new = state["start"] != step.start
        since = torch.where(new, 0, state["since"] + 1)
    state["start"], state["since"] = step.start, since
    return new


def due(count: Tensor, every: int | None) -> Tensor:
    """[B] whether count [B] is a multiple of `every` but not 0; never if that is None."""
    if every is None:
        return torch.zeros_like(count, dtype=torch.bool)
    return (count > 0) & (count % every == 0)
