"""Controllers: how far to draft and how much to verify; the only component that has a clock.

It decides before a token is drawn, or on trees whose tokens were not drawn (non-anticipation).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from dllm.checks import check_share, check_whole


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


class ControlSession(Protocol):
    """State of one request; a controller's `open(rows)` makes it. Rows keep their first numbers.

    A round asks depth and drafts of each live row, then sizes; it ends with observe for each of
    these rows, then spent. Whoever decides sees weights and lengths, never a token.
    """

    def depth(self, row: int) -> int:
        """Positions to ask the drafter for in this round; 0: do not run it for this row."""
        ...

    def drafts(self, row: int) -> int:
        """Nodes that the search may grow to at most; 0: no speculation in this round."""
        ...

    def sizes(self, weights: Sequence[NDArray[np.float64]]) -> list[int]:
        """Nodes to verify in each live row, given the weights of its grown, drawn-free tree.

        weights: of the drafts of one row each, in the order of the tree, without the root.
        """
        ...

    def observe(self, row: int, seen: Observed) -> None: ...

    def spent(self, seen: Spent) -> None: ...


class Controller(Protocol):
    """A frozen dataclass of options; `open` begins a batch of `rows` texts."""

    def open(self, rows: int) -> ControlSession: ...


class FixedSession:
    """Verifies all that was grown and learns nothing: what a control without a clock starts from.

    depths [rows]: positions to ask for.  nodes: most nodes of a tree, None: as many as positions.
    """

    def __init__(self, depths: list[int], nodes: int | None) -> None:
        self.depths = depths
        self.nodes = nodes

    def depth(self, row: int) -> int:
        return self.depths[row]

    def drafts(self, row: int) -> int:
        return self.depths[row] if self.nodes is None else self.nodes

    def sizes(self, weights: Sequence[NDArray[np.float64]]) -> list[int]:
        return [len(row) for row in weights]

    def observe(self, row: int, seen: Observed) -> None:
        pass

    def spent(self, seen: Spent) -> None:
        pass


@dataclass(frozen=True)
class FixedController:
    """The same in every round: `depth` positions, `nodes` nodes (none: as many as positions)."""

    depth: int = 8
    nodes: int | None = None

    def __post_init__(self) -> None:
        check_whole("depth", self.depth, 0)
        check_whole("nodes", self.nodes, 0, none=True)

    def open(self, rows: int) -> ControlSession:
        return FixedSession([self.depth] * rows, self.nodes)


@dataclass(frozen=True)
class ThresholdController:
    """Verify while it is likely enough that all goes well.

    A node is verified if the estimated probability that anything on the way to it is rejected is at
    most `reject`, and so it is for all before it: SpecDec++'s optimal stopping rule, with the
    drafter's estimates for its trained head. After a draft that was accepted as a whole the next is
    `step` positions longer, up to `most`, else it is `depth` again (0: always `depth`): FailFast's
    growth from one round to the next, where it drafts again within a round. nodes: most nodes of a
    tree (none: as many as positions).
    """

    paper: ClassVar[str] = "SpecDec++, arXiv 2405.19715; FailFast, arXiv 2512.20573"
    reject: float = 0.7
    depth: int = 10
    step: int = 0
    most: int = 60
    nodes: int | None = None

    def __post_init__(self) -> None:
        check_share("reject", self.reject)
        check_whole("depth", self.depth, 1)
        check_whole("step", self.step, 0)
        check_whole("most", self.most, self.depth)
        check_whole("nodes", self.nodes, 0, none=True)

    def open(self, rows: int) -> ControlSession:
        return ThresholdSession(self, rows)


class ThresholdSession(FixedSession):
    """The depth of every row."""

    def __init__(self, options: ThresholdController, rows: int) -> None:
        super().__init__([options.depth] * rows, options.nodes)
        self.options = options

    def sizes(self, weights: Sequence[NDArray[np.float64]]) -> list[int]:
        likely = [1 - row <= self.options.reject for row in weights]
        return [int(np.logical_and.accumulate(row).sum()) for row in likely]

    def observe(self, row: int, seen: Observed) -> None:
        if seen.depth:
            full = seen.accepted >= seen.depth
            longer = min(self.depths[row] + self.options.step, self.options.most)
            self.depths[row] = longer if full else self.options.depth
