"""Protocols of the components beside the rule: planners, stop rules, transforms, speculators.

Each is a frozen dataclass of options. It may have `bind(vocabulary)`, called once a request, which
gives back a copy that knows the token ids of the texts it was given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from dllm.decoding.canvas import Canvas, Windows
from dllm.samplers.candidates import Candidates, Transform
from dllm.samplers.rule import CommitRule

__all__ = [
    "Planner",
    "PlannerBase",
    "Speculator",
    "State",
    "StopRule",
    "Transform",
    "Verdict",
    "Vocabulary",
]

State = dict[str, Tensor]  # tensors [B, ...] that one keeps between steps, by assigning to a key


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

    def windows(self, canvas: Canvas, state: State) -> Windows:
        """Before the forward: windows of every row, at least one with a masked position."""
        ...

    def narrow(self, view: Candidates, windows: Windows, state: State) -> Windows:
        """After the forward: the same windows or parts of them, still with a masked position.

        `view` holds all masked positions of `windows`, one row per canvas row; its window fields
        are those of the widest span.
        """
        ...


class PlannerBase:
    """The usual planner needs nothing and keeps the windows it chose before the forward."""

    @property
    def needs(self) -> frozenset[str]:
        return frozenset()

    def narrow(self, view: Candidates, windows: Windows, state: State) -> Windows:
        return windows


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

    def check(self, view: Candidates, canvas: Canvas, state: State) -> Verdict:
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
