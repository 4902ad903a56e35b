"""RSD (arXiv 2402.14160): trees of tokens drawn without replacement, and the rule for them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from torch import Tensor

from dllm.verify.accept.sampled import Sampled, one_by_one
from dllm.verify.draft.construct import Construction, Slot, chances, drawn
from dllm.verify.draft.lattice import Lattice
from dllm.verify.rng import Rng
from dllm.verify.tree import Distribution, Draw


@dataclass(frozen=True)
class RsdTree(Construction):
    """At each depth a set of tokens drawn without replacement, below every node of the last depth.

    RSD with constant branching, but without a Markov head one set for all nodes of a depth. widths:
    tokens per depth; the last goes on for deeper columns. Where no token of a column has the
    probability `confidence`, nothing is drafted from it on.
    """

    paper = "RSD, arXiv 2402.14160"

    accepts: ClassVar[tuple[str, ...]] = ("rsd", "ratio", "match")
    widths: tuple[int, ...] = (3, 2, 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.widths or min(self.widths) < 1:
            text = "+".join(map(str, self.widths))
            raise ValueError(f"widths={text}: expected whole numbers of at least 1 joined by +")

    def width(self, depth: int) -> int:
        return self.widths[min(depth, len(self.widths) - 1)]

    def plan(self, lattice: Lattice, depth: int) -> Iterator[Slot]:
        column, last, count = chances(lattice), [(-1, 1.0)], 0
        share, most = column.sum(1), np.count_nonzero(column, 1)
        for i in range(depth):
            width, above, last = min(self.width(i), int(most[i])), last, []
            for parent, weight in above:
                weight *= share[i] / width
                for pick in range(width):
                    yield Slot(parent, i, weight, pick)
                    last.append((count, weight))
                    count += 1

    def column(self, distribution: Distribution, depth: int, rng: Rng) -> Draw:
        tokens = list[int]()
        for _ in range(self.width(depth)):
            tokens += drawn(distribution.without(tokens), 1, rng)
        return Draw(distribution, tuple(tokens))


@dataclass(frozen=True)
class Rsd(Sampled):
    """The ratio test on each draw in turn, for draws without replacement.

    A rejected draw leaves nrm[p - q]+ as the target's distribution, and q without that token,
    renormalised, as the next draw's (recursive rejection sampling).
    """

    paper = "RSD, arXiv 2402.14160"

    def spend(self, p: Tensor, draw: Draw, rng: Rng) -> int:
        return one_by_one(p, draw.distribution, draw.tokens, rng)
