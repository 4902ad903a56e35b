"""How far to draft and how much to verify: the only part that looks at the clock.

It decides before a token is drawn, or on trees whose tokens were not drawn (non-anticipation).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Observed:
    """What one round of one row came to.

    depth: positions that the drafter was asked for (0: not asked).  end: the raw draft's first end
    token, as a position (`depth` without one).  drafts: verified nodes.  accepted: those kept.
    weights [drafts]: the nodes' estimates.  kept [drafts]: whether each was accepted.
    """

    depth: int
    end: int
    drafts: int
    accepted: int
    weights: NDArray[np.float64]
    kept: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Spent:
    """Seconds of one round of the whole batch; rows, width: the verified batch's shape.

    depth: the drafter's (0: it did not run).  host: everything that is neither model.
    """

    rows: int
    width: int
    depth: int
    draft: float
    verify: float
    host: float


class Control(Protocol):
    """State of one request; a part's `open(rows)` makes it. Rows keep their first numbers."""

    def depth(self, row: int) -> int:
        """Positions to ask the drafter for in this round; 0: do not run it for this row."""
        ...

    def drafts(self, row: int) -> int:
        """Nodes that the search may grow to at most; 0: no speculation in this round."""
        ...

    def sizes(self, weights: Sequence[NDArray[np.float64]]) -> list[int]:
        """Nodes to verify in each live row, given the weights of its grown, drawn-free tree."""
        ...

    def observe(self, row: int, seen: Observed) -> None: ...

    def spent(self, seen: Spent) -> None: ...


class ControlPart(Protocol):
    """A frozen dataclass of knobs; `open` begins a batch of `rows` texts."""

    def open(self, rows: int) -> Control: ...
