"""Markov chain of a lattice: candidates of a column given the one before, for a heap search."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from dllm.verify.draft.heap import Step
from dllm.verify.draft.lattice import Lattice
from dllm.verify.sources.memory import Array, Ids

Place = tuple[int, tuple[int, ...]]  # column to fill next, the last candidates chosen before it


def ratio(above: Array, below: Array) -> Array:
    """above / below, and 0 where below is 0."""
    return np.divide(above, below, out=np.zeros(np.broadcast(above, below).shape), where=below > 0)


def sharpened(probs: Array, gamma: float, mass: Array) -> Array:
    """probs ** gamma, gamma above 0, each row [..., M] scaled to the sum mass [..., 1]."""
    powers = ratio(probs, probs.max(-1, keepdims=True)) ** gamma
    return ratio(powers, powers.sum(-1, keepdims=True)) * np.minimum(mass, 1)


def drafted(lattice: Lattice, gamma: float) -> tuple[Array, Array]:
    """The drafter's own distribution of the first column [M] and conditionals of those behind it
    [K-1, M, M], sharpened; for a lattice with pairs."""
    assert lattice.pairs is not None
    first, behind = np.exp(lattice.logp[0]), np.exp(lattice.pairs[1:])
    return (
        sharpened(first, gamma, first.sum(keepdims=True)),
        sharpened(behind, gamma, behind.sum(-1, keepdims=True)),
    )


@dataclass(slots=True)
class MarkovChain:
    """A lattice as a Markov chain: what may follow a candidate, and how likely.

    tokens [K, M].  first [M]: distribution of the first column.  behind [K-1, M, M]: r(v|u) of the
    columns behind it. Both sharpened, and with the mass that the column keeps.  found: steps that
    were asked for before.
    """

    tokens: Ids
    first: Array
    behind: Array
    found: dict[Place, list[Step[Place]]] = field(default_factory=dict)

    def steps(self, place: Place) -> list[Step[Place]]:
        """What may follow, heaviest first."""
        if place not in self.found:
            self.found[place] = self.expand(*place)
        return self.found[place]

    def expand(self, depth: int, before: tuple[int, ...]) -> list[Step[Place]]:
        if depth == len(self.tokens):
            return []
        kept = self.remembered(before)
        steps = [
            (weight, token, "lattice", (depth + 1, (*kept, slot)))
            for slot, (weight, token) in enumerate(
                zip(self.distribution(depth, before).tolist(), self.tokens[depth].tolist())
            )
            if weight > 0
        ]
        return sorted(steps, key=lambda step: -step[0])

    def remembered(self, before: tuple[int, ...]) -> tuple[int, ...]:
        """Which candidates before the last one a distribution depends on."""
        return ()

    def distribution(self, depth: int, before: tuple[int, ...]) -> Array:
        """Conditional distribution [M] of a column behind candidates of the columns before it."""
        if depth == 0:
            return self.first
        found: Array = self.behind[depth - 1, before[-1]]
        return found
