"""Protocols of the components beside the rule: planners, stop rules, transforms, speculators.

Each is a frozen dataclass of options. It may have `bind(vocabulary)`, called once a request, which
gives back a copy that knows the token ids of the texts it was given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from dllm.decoding.canvas import Array, Canvas, Windows
from dllm.decoding.state import Fields
from dllm.samplers.candidates import Candidates
from dllm.samplers.rule import CommitRule
from dllm.samplers.transforming import State, Transform

__all__ = [
    "DeviceCanvas",
    "HostState",
    "Planner",
    "PlannerBase",
    "Speculator",
    "State",
    "StopRule",
    "Transform",
    "Verdict",
    "Vocabulary",
]

HostState = dict[str, Array]  # arrays [B, ...] that one keeps between steps, by assigning to a key


class Vocabulary(Protocol):
    """Facts that `bind` may ask for: text to ids, the text of every id on its own, the special ids,
    the length of the blocks that attention is causal in (None: it goes both ways everywhere).
    """

    @property
    def size(self) -> int: ...
    @property
    def pieces(self) -> Sequence[str]: ...
    @property
    def mask_id(self) -> int: ...
    @property
    def stop_ids(self) -> tuple[int, ...]: ...
    @property
    def attention_block(self) -> int | None: ...
    def encode(self, text: str) -> list[int]: ...


class Planner(Protocol):
    """Chooses the windows of each row in which tokens may be committed. See `PlannerBase` for the
    defaults.
    """

    @property
    def needs(self) -> frozenset[str]:
        """Costly fields of `Candidates` that `narrow` reads."""
        ...

    @property
    def narrows(self) -> bool:
        """Whether `narrow` may change a window."""
        ...

    @property
    def fields(self) -> Fields:
        """The state that it keeps: numbers [B] or bools [B] by name."""
        ...

    def windows(self, canvas: Canvas, state: HostState) -> Windows:
        """Before the forward, on the host: windows of every row, at least one with a masked
        position.
        """
        ...

    def narrow(self, view: Candidates, state: State) -> tuple[Tensor, Tensor]:
        """After the forward, on the device: start and end [B] of a part of each row's window, still
        with a masked position; called where it `narrows`. For planners of one window a row.

        `view` holds all masked positions of the windows, one row per canvas row. `state` is what
        `windows` left, as tensors; what is assigned to its keys is there for the next `windows`.
        """
        ...


class PlannerBase:
    """The usual planner needs nothing and keeps the windows it chose before the forward."""

    fields: ClassVar[Fields] = {}
    narrows: ClassVar[bool] = False

    @property
    def needs(self) -> frozenset[str]:
        return frozenset()

    def narrow(self, view: Candidates, state: State) -> tuple[Tensor, Tensor]:
        return view.start, view.end


@dataclass(frozen=True, slots=True)
class DeviceCanvas:
    """What stands on the canvas behind a step's commits, on the device, for stop rules.

    ids, known, generated [B, T], prompt, length [B]: as in `Canvas`.
    """

    ids: Tensor
    known: Tensor
    generated: Tensor
    prompt: Tensor
    length: Tensor

    @property
    def masked(self) -> Tensor:
        """[B, T] positions still to be filled."""
        return self.generated & ~self.known

    @property
    def pos(self) -> Tensor:
        """[T] absolute positions."""
        return torch.arange(self.ids.shape[1], device=self.ids.device)


@dataclass(frozen=True, slots=True)
class Verdict:
    """Decision of a stop rule after a step's commits.

    fill [B] bool: commit the most likely token at every masked position left now.
    length [B]: drop all positions of the row from this one on (the row's length: keep all).
    """

    fill: Tensor | None = None
    length: Tensor | None = None


class StopRule(Protocol):
    """Ends rows early, beyond the exact end-of-text stop that is always on."""

    @property
    def needs(self) -> frozenset[str]:
        """Costly fields of `Candidates` that `check` reads."""
        ...

    @property
    def whole_row(self) -> bool:
        """Whether `check` must see all masked positions of a row, not only its windows'."""
        ...

    @property
    def fields(self) -> Fields:
        """The state that it keeps."""
        ...

    def check(self, view: Candidates, canvas: DeviceCanvas, state: State) -> Verdict:
        """`view`: the masked positions before this step; `canvas`: with this step's commits."""
        ...


class Speculator(Protocol):
    """Guesses the canvases to come, so that one forward computes several steps. Always lossless:
    a guess is used only where the step that really follows leads to exactly that canvas.
    """

    def drafts(self, rule: CommitRule, view: Candidates, done: Tensor) -> list[Tensor]:
        """Growing sets [B, K] of candidates that may be known after 1, 2, ... further steps.

        `done` [B, K] are this step's commits; every set holds them. Tokens are `view.token`.
        """
        ...
