"""Coupled search: marginals of neighbouring positions made to agree with what may follow what.

A drafter's marginals say how likely a token is at a position, a causal proxy says how likely it is
behind another token. Of all joint distributions of two neighbouring columns with the drafter's
marginals, the coupling is the one nearest to the proxy in relative entropy: pi(u, v) = a(u) g(v|u)
b(v) (Sinkhorn scaling). How often the proxy sees a token at all cancels out, only which tokens go
together counts; with a proxy that says nothing the product of the marginals is left. Where the
drafter has conditionals of its own (`Lattice.pairs`) those take the coupling's place.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from dllm.checks import check_choice, check_positive, check_whole
from dllm.verify.draft.heap import Expand
from dllm.verify.draft.lattice import TINY, Lattice
from dllm.verify.draft.markov import MarkovChain, Place, drafted, ratio, sharpened
from dllm.verify.draft.search import HeaviestSearch
from dllm.verify.sources.memory import Array, Memory


@dataclass(frozen=True)
class Coupled(HeaviestSearch):
    """The heaviest nodes of the coupled lattice: what neighbours allow, with the right marginals.

    With a Markov head its conditionals stand in for the coupling.
    width: candidates per column.  sweeps: of the scaling, see `couple`.  gamma: sharpens the
    conditionals.  order: 3 corrects by the memory's longer contexts.
    smooth: share of the uniform distribution in the memory's.
    """

    width: int = 8
    sweeps: int = 15
    gamma: float = 1.0
    order: int = 3
    smooth: float = 0.01

    def __post_init__(self) -> None:
        check_whole("width", self.width, 1)
        check_whole("sweeps", self.sweeps, 1, 10_000)
        check_positive("gamma", self.gamma)
        check_choice("order", self.order, 2, 3)
        check_positive("smooth", self.smooth, 1)

    def read(self, lattice: Lattice, memory: Memory) -> Expand[Place]:
        return chain(
            lattice.narrow(self.width),
            memory,
            sweeps=self.sweeps,
            gamma=self.gamma,
            smooth=self.smooth,
            longer=self.order == 3,
        ).steps


def couple(proxy: Array, left: Array, right: Array, sweeps: int) -> Array:
    """Conditionals r(v|u) [..., M, M] of the coupling of left [..., M] and right [..., M].

    proxy [..., M, M]: g(v|u) up to factors of u and of v; u are rows.  left, right: distributions
    that sum to 1.  The more sweeps, the nearer left @ r comes to right; rows of r always sum to 1.
    """
    scale = np.where(right > 0, 1.0, 0.0)
    for _ in range(sweeps):
        rows = left / np.maximum((proxy @ scale[..., None])[..., 0], TINY)
        scale = right / np.maximum((rows[..., None, :] @ proxy)[..., 0, :], TINY)
    joint = proxy * scale[..., None, :]
    return ratio(joint, joint.sum(-1, keepdims=True))


def smoothed(proxy: Array, smooth: float) -> Array:
    """The proxy's rows [..., M] normalised over the candidates and mixed with the uniform
    distribution.
    """
    total = proxy.sum(-1, keepdims=True)
    return np.asarray((1 - smooth) * ratio(proxy, total) + smooth / proxy.shape[-1])


@dataclass(slots=True)
class CorrectedChain(MarkovChain):
    """A Markov chain corrected by the memory's own g(v|all before) / g(v|u).

    proxy [K-1, M, M]: g(v|u), gamma and smooth as in `chain`.
    """

    memory: Memory = field(kw_only=True)
    proxy: Array = field(kw_only=True)
    gamma: float = field(kw_only=True)
    smooth: float = field(kw_only=True)

    def remembered(self, before: tuple[int, ...]) -> tuple[int, ...]:
        return before

    def distribution(self, depth: int, before: tuple[int, ...]) -> Array:
        found = MarkovChain.distribution(self, depth, before)
        if depth == 0:
            return found
        path = [int(self.tokens[i, slot]) for i, slot in enumerate(before)]
        said = np.exp(self.memory.logp(path, self.tokens[depth]))
        longer = smoothed(np.where(found > 0, said, 0), self.smooth)
        better: Array = found * (longer / self.proxy[depth - 1, before[-1]]) ** self.gamma
        return np.asarray(better * (found.sum() / max(better.sum(), TINY)))


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
    if not longer:
        return MarkovChain(tokens, first, behind)
    return CorrectedChain(
        tokens, first, behind, memory=memory, proxy=proxy, gamma=gamma, smooth=smooth
    )
