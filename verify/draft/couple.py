"""Marginals of neighbouring positions made to agree with what may follow what.

A drafter's marginals say how likely a token is at a position, a causal proxy says how likely it is
behind another token. Of all joint laws of two neighbouring columns with the drafter's marginals,
the coupling is the one nearest to the proxy in relative entropy: pi(u, v) = a(u) g(v|u) b(v)
(Sinkhorn scaling). How often the proxy sees a token at all cancels out, only which tokens go
together counts; with a proxy that says nothing the product of the marginals is left. Where the
drafter has conditionals of its own (`Lattice.pairs`) those take the coupling's place.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from dllm.verify.draft.heap import Step
from dllm.verify.draft.lattice import TINY, Lattice
from dllm.verify.sources.memory import Array, Ids, Memory

Place = tuple[int, tuple[int, ...]]  # column to fill next, the last candidates chosen before it


def ratio(above: Array, below: Array) -> Array:
    """above / below, and 0 where below is 0."""
    return np.divide(above, below, out=np.zeros(np.broadcast(above, below).shape), where=below > 0)


def couple(proxy: Array, left: Array, right: Array, sweeps: int) -> Array:
    """Conditionals r(v|u) [..., M, M] of the coupling of left [..., M] and right [..., M].

    proxy [..., M, M]: g(v|u) up to factors of u and of v; u are rows.  left, right: laws that sum
    to 1.  The more sweeps, the nearer left @ r comes to right; rows of r always sum to 1.
    """
    scale = np.where(right > 0, 1.0, 0.0)
    for _ in range(sweeps):
        rows = left / np.maximum((proxy @ scale[..., None])[..., 0], TINY)
        scale = right / np.maximum((rows[..., None, :] @ proxy)[..., 0, :], TINY)
    joint = proxy * scale[..., None, :]
    return ratio(joint, joint.sum(-1, keepdims=True))


def smoothed(proxy: Array, smooth: float) -> Array:
    """The proxy's rows [..., M] normalised over the candidates and mixed with the uniform law."""
    total = proxy.sum(-1, keepdims=True)
    return np.asarray((1 - smooth) * ratio(proxy, total) + smooth / proxy.shape[-1])


def sharpened(probs: Array, gamma: float, mass: Array) -> Array:
    """probs ** gamma, gamma above 0, each row [..., M] scaled to the sum mass [..., 1]."""
    powers = ratio(probs, probs.max(-1, keepdims=True)) ** gamma
    return ratio(powers, powers.sum(-1, keepdims=True)) * np.minimum(mass, 1)


def drafted(lattice: Lattice, gamma: float) -> tuple[Array, Array]:
    """The drafter's own law of the first column [M] and conditionals of those behind it
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

    tokens [K, M].  first [M]: law of the first column.  behind [K-1, M, M]: r(v|u) of the columns
    behind it. Both sharpened, and with the mass that the column keeps.
    memory: where not None, r is corrected by the memory's own g(v|all before) / g(v|u), with
    proxy [K-1, M, M]: g(v|u), gamma and smooth as in `chain`.
    """

    tokens: Ids
    first: Array
    behind: Array
    memory: Memory | None = None
    proxy: Array = field(default_factory=lambda: np.zeros(0))
    gamma: float = 1.0
    smooth: float = 0.0
    known: dict[Place, list[Step[Place]]] = field(default_factory=dict)

    def steps(self, place: Place) -> list[Step[Place]]:
        """What may follow, heaviest first."""
        if place not in self.known:
            self.known[place] = self.expand(*place)
        return self.known[place]

    def expand(self, depth: int, before: tuple[int, ...]) -> list[Step[Place]]:
        if depth == len(self.tokens):
            return []
        kept = before if self.memory else ()
        steps = [
            (weight, token, "lattice", (depth + 1, (*kept, slot)))
            for slot, (weight, token) in enumerate(
                zip(self.distribution(depth, before).tolist(), self.tokens[depth].tolist())
            )
            if weight > 0
        ]
        return sorted(steps, key=lambda step: -step[0])

    def distribution(self, depth: int, before: tuple[int, ...]) -> Array:
        """Conditional law [M] of a column behind candidates of the columns before it."""
        if depth == 0:
            return self.first
        distribution: Array = self.behind[depth - 1, before[-1]]
        if self.memory is None:
            return distribution
        path = [int(self.tokens[i, slot]) for i, slot in enumerate(before)]
        said = np.exp(self.memory.logp(path, self.tokens[depth]))
        longer = smoothed(np.where(distribution > 0, said, 0), self.smooth)
        better: Array = distribution * (longer / self.proxy[depth - 1, before[-1]]) ** self.gamma
        return np.asarray(better * (distribution.sum() / max(better.sum(), TINY)))


def chain(
    lattice: Lattice,
    memory: Memory,
    *,
    sweeps: int,
    gamma: float,
    smooth: float,
    longer: bool,
) -> MarkovChain:
    """The coupled lattice of columns of which none is empty, by the drafter's own conditionals or
    else by the memory's pairs.

    longer: correct by what the memory knows of more than one token before.
    """
    tokens, probs = lattice.tokens, np.exp(lattice.logp)
    mass = probs.sum(1, keepdims=True)
    distributions = probs / mass
    said = memory.pairs(tokens[:-1], tokens[1:])
    proxy = smoothed(np.where(distributions[1:, None] > 0, said, 0), smooth)
    if lattice.pairs is not None:
        first, behind = drafted(lattice, gamma)
    else:
        first = sharpened(probs[0], gamma, mass[0])
        behind = couple(proxy, distributions[:-1], distributions[1:], sweeps)
        behind = sharpened(behind, gamma, mass[1:, None])
    return MarkovChain(tokens, first, behind, memory if longer else None, proxy, gamma, smooth)
