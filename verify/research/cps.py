"""DiffuSpec as published (arXiv 2510.02358): its path search, and its control of draft lengths."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from dllm.checks import check_number, check_positive, check_share, check_whole
from dllm.verify.control.controllers import ControlSession, FixedSession, Observed
from dllm.verify.draft.heap import Expand
from dllm.verify.draft.lattice import Lattice
from dllm.verify.draft.markov import Place
from dllm.verify.draft.search import HeaviestSearch, along
from dllm.verify.sources.memory import Memory


@dataclass(frozen=True)
class Cps(HeaviestSearch):
    """Causal-consistency path search, as published (arXiv 2510.02358, section 3.2).

    A beam of `beam` paths maximises the sum of lam * ln m_i(v) + (1 - lam) * ln g(v | before) over
    columns cut to the fewest tokens that have `mass`, at most `width`, end tokens always kept. A
    path ends at its first end token and then competes with its score as it stands: nothing makes
    up for its length, as published. g is the memory's n-gram, where the paper trains one for each
    dataset. The nodes' weights are the drafter's probabilities; branches join the path. With a
    Markov head m_i is its distribution behind the token before.
    """

    paper = "DiffuSpec, arXiv 2510.02358"
    beam: int = 3
    mass: float = 0.8
    width: int = 15
    lam: float = 0.5

    def __post_init__(self) -> None:
        check_whole("beam", self.beam, 1)
        check_whole("width", self.width, 1)
        check_positive("mass", self.mass)
        check_share("lam", self.lam)

    def read(self, lattice: Lattice, memory: Memory) -> Expand[Place]:
        kept = lattice.prune(self.mass, self.width)
        return along(kept, self.path(kept, memory))

    def path(self, lattice: Lattice, memory: Memory) -> list[int]:
        """The best path, as candidates of its columns; among equals the one found first."""
        beam: list[tuple[float, list[int], list[int]]] = [(0.0, [], [])]  # score, slots, tokens
        for tokens in lattice.tokens:
            found = []
            for score, path, before in beam:
                logp = lattice.given(path)
                slots = np.flatnonzero(logp > -np.inf)
                if not len(slots) or (before and before[-1] in lattice.eos):
                    found.append((score, path, before))
                    continue
                proxy = memory.logp(before, tokens[slots])
                gains = self.lam * logp[slots] + (1 - self.lam) * proxy
                found += [
                    (score + gain, [*path, slot], [*before, token])
                    for gain, slot, token in zip(
                        gains.tolist(), slots.tolist(), tokens[slots].tolist()
                    )
                ]
            beam = sorted(found, key=lambda entry: -entry[0])[: self.beam]
        return beam[0][1]


@dataclass(frozen=True)
class AdlController:
    """Adaptive draft length as published: averages of drafted and of accepted lengths.

    The next length is the average of what was drafted before the first end token, rounded down,
    and `delta` more where as much was accepted on average; within k_min and k_max. No more can be
    accepted than was drafted, so it grows only while whole drafts are accepted, and an average
    that starts at 0 is below k_min at once: this follows end tokens, and knows no cost. All that
    is drafted is verified.  rho: weight of the newest length.
    """

    paper: ClassVar[str] = "DiffuSpec, arXiv 2510.02358, section 3.3"
    k_min: int = 20
    k_max: int = 30
    delta: float = 10
    rho: float = 0.5

    def __post_init__(self) -> None:
        check_whole("k_min", self.k_min, 1)
        check_whole("k_max", self.k_max, self.k_min)
        check_share("rho", self.rho)
        check_number("delta", self.delta, 0, kind="a number of tokens")

    def open(self, rows: int) -> ControlSession:
        return AdlSession(self, rows)


class AdlSession(FixedSession):
    """The averages of every row. averages [rows, 2]: of drafted and of accepted tokens."""

    def __init__(self, options: AdlController, rows: int) -> None:
        super().__init__([options.k_max] * rows, None)
        self.options = options
        self.averages = np.zeros((rows, 2))

    def observe(self, row: int, seen: Observed) -> None:
        if not seen.depth:
            return
        drafted = min(seen.end, seen.depth)
        self.averages[row] *= 1 - self.options.rho
        self.averages[row] += self.options.rho * np.array([drafted, seen.accepted])
        drafts, accepted = self.averages[row]
        grown = drafts + self.options.delta * (accepted >= drafts)
        self.depths[row] = int(min(max(grown, self.options.k_min), self.options.k_max))
