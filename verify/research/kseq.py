"""k-SEQ (SpecTr, arXiv 2310.15141): trees of independent chains, and the rule for them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dllm.checks import check_whole
from dllm.verify.accept.sampled import Sampled, minus, normalised, passes, share
from dllm.verify.draft.construct import Construction, Slot, drawn, shares
from dllm.verify.draft.lattice import Lattice
from dllm.verify.rng import Rng
from dllm.verify.tree import Distribution, Draw


@dataclass(frozen=True)
class KSeqTree(Construction):
    """Several independent chains as one tree, in which equal prefixes merge.

    chains: how many. Where no token of a column has the probability `confidence`, nothing is
    drafted from it on.
    """

    paper = "SpecTr, arXiv 2310.15141"

    accepts: ClassVar[tuple[str, ...]] = ("kseq", "ratio", "match")
    chains: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("chains", self.chains, 1, 1024)

    def plan(self, lattice: Lattice, depth: int) -> Iterator[Slot]:
        for i, weight in enumerate(np.cumprod(shares(lattice))[:depth]):
            for chain in range(self.chains):
                parent = (i - 1) * self.chains + chain if i else -1
                yield Slot(parent, i, float(weight) / self.chains, chain)

    def column(self, distribution: Distribution, depth: int, rng: Rng) -> Draw:
        return Draw(distribution, drawn(distribution, self.chains, rng))


@dataclass(frozen=True)
class KSeq(Sampled):
    """For k independent draws: keep each with probability min(1, p/(rho q)).

    rho is the smallest that leaves a residual for what is to be drawn if none is kept. At least one
    is kept no less than (1 - 1/e) as often as is possible.
    """

    paper = "SpecTr (k-SEQ), arXiv 2310.15141"

    def spend(self, p: Tensor, draw: Draw, rng: Rng) -> int:
        q, count = draw.distribution, len(draw.tokens)
        on_q = p[torch.from_numpy(q.tokens).to(p.device)].cpu().numpy()
        rho = smallest_rho(on_q, q.probs, count)
        for token in draw.tokens:
            if passes(share(float(p[token]), rho * q.prob(token)), rng):
                return token
        kept = np.minimum(on_q / rho, q.probs)
        each = float(kept.sum())
        taken = Distribution(q.tokens, kept * (any_of(each, count) / each if each > 0 else 0.0))
        return rng.choice(normalised(minus(p, taken), p))


def smallest_rho(p: NDArray[np.float64], q: NDArray[np.float64], count: int) -> float:
    """The least rho in [1, count] with 1 - (1 - b)^count <= rho b, b = sum min(p / rho, q)."""
    low, high = 1.0, float(count)
    for _ in range(50):
        rho = (low + high) / 2
        each = float(np.minimum(p / rho, q).sum())
        if any_of(each, count) <= rho * each:
            high = rho
        else:
            low = rho
    return high


def any_of(each: float, count: int) -> float:
    """Probability that one of `count` independent events of probability `each` happens."""
    return 1 - (1 - each) ** count
