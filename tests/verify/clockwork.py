"""A world with known costs and known acceptance, to run a controller in.

A pass of so many rows and tokens a row takes as long as one of the curves says (one row and one
token: 1).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from dllm.verify.control.controllers import ControlSession, Observed, Spent

CPU = {1: 1.0, 2: 1.8, 4: 1.8, 8: 2.3, 16: 2.7, 32: 3.8, 64: 7.0}


def bf16(rows: int, width: int) -> float:
    return float(np.interp(width, [1, 4, 8, 16, 32, 64], [1, 1, 1.24, 1.73, 2.1, 3.4]))


def fp32(rows: int, width: int) -> float:
    return float(np.interp(width, list(CPU), list(CPU.values())))


def gpu(rows: int, width: int) -> float:
    return 1 + 0.002 * rows * width


def tiles(rows: int, width: int) -> float:
    return 1 + 0.3 * ((width - 1) // 8)


CURVES: dict[str, Callable[[int, int], float]] = {
    "bf16": bf16,
    "fp32": fp32,
    "gpu": gpu,
    "tiles": tiles,
}


def chance(right: float) -> Callable[[int], float]:
    return lambda round: right


@dataclass
class World:
    """Drafts are chains whose tokens are right with a probability that may change with time.

    verify(rows, width), draft(depth): seconds.  drafter, branches: round -> probability that a
    token is right, given those before it.  claim: what the weights say it is.
    """

    verify: Callable[[int, int], float]
    draft: Callable[[int], float] = lambda depth: 0.5
    drafter: Callable[[int], float] = lambda round: 0.8
    branches: Callable[[int], float] | None = None
    claim: float = 0.8
    host: float = 0.01
    search: float = 0.02
    seed: int = 0
    seconds: float = 0.0
    tokens: int = 0
    log: list[tuple[int, int, int]] = field(default_factory=list)  # depth, width, accepted

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)

    def grow(self, depth: int, drafts: int) -> NDArray[np.float64]:
        """Weights of a row's chain; model-free branches are 16 tokens long."""
        length = depth or (16 if self.branches else 0)
        return self.claim ** np.arange(1, min(length, drafts) + 1)

    def play(self, control: ControlSession, rounds: int, rows: int = 1) -> None:
        for _ in range(rounds):
            self.round(control, rows)

    def round(self, control: ControlSession, rows: int) -> None:
        now = len(self.log)
        depths = [control.depth(row) for row in range(rows)]
        weights = [self.grow(depths[row], control.drafts(row)) for row in range(rows)]
        sizes = control.sizes(weights)
        accepted = [
            self.observe(control, row, depths[row], weights[row][: sizes[row]], now)
            for row in range(rows)
        ]
        self.settle(control, depths, sizes, any(control.drafts(row) for row in range(rows)))
        self.tokens += rows + sum(accepted)
        self.log.append((max(depths), 1 + max(sizes), sum(accepted)))

    def observe(
        self, control: ControlSession, row: int, depth: int, weights: NDArray[np.float64], now: int
    ) -> int:
        source = self.drafter if depth else self.branches
        right = self.rng.random(len(weights)) < (source(now) if source else 0)
        kept = np.logical_and.accumulate(right)
        accepted = int(kept.sum())
        control.observe(row, Observed(depth, depth, len(weights), accepted, weights, kept))
        return accepted

    def settle(
        self, control: ControlSession, depths: Sequence[int], sizes: Sequence[int], searched: bool
    ) -> None:
        rows, width, depth = len(sizes), 1 + max(sizes), max(depths)
        draft = self.draft(depth) if depth else 0.0
        verify, host = self.verify(rows, width), self.search if searched else self.host
        self.seconds += draft + verify + host
        control.spent(Spent(rows, width, depth, draft, verify, host))

    def slowdown(self, rows: int = 1) -> float:
        """Seconds by those of plain decoding of as many tokens."""
        return self.seconds / (self.tokens / rows * (self.verify(rows, 1) + self.host))
