"""From a lattice and model-free branches to the tree that the target verifies.

`Search` is the interface, one class per method; see heap.py, couple.py and sources.py for what
they use. Nothing is drawn at random here: a tree is a function of the text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np

from dllm.checks import check_choice, check_positive, check_share, check_whole
from dllm.verify.draft.couple import MarkovChain, Place, chain, drafted, sharpened
from dllm.verify.draft.heap import Both, Expand, Step, Twig, climb, fuse, heaviest, plant
from dllm.verify.draft.lattice import Lattice
from dllm.verify.rng import Rng
from dllm.verify.sources.memory import Memory
from dllm.verify.tree import Tree


class Search(Protocol):
    """A part: a frozen dataclass of knobs.

    accepts: names of the acceptance rules that fit the trees it grows, the usual one first.
    samples: whether it draws tokens. If so nobody may cut its tree by what was drawn (a length
    that looks at the token it admits is biased); a deterministic tree may be cut anywhere.
    """

    @property
    def accepts(self) -> tuple[str, ...]: ...
    @property
    def samples(self) -> bool: ...

    def grow(self, root: int, lattice: Lattice, memory: Memory, drafts: int, rng: Rng) -> Tree:
        """A tree behind the token `root` of at most `drafts` nodes, the heaviest first.

        Its weights never rise along a path. Nothing is drafted behind a token of `lattice.eos`.
        An empty lattice leaves the branches of `memory`; without those the tree is the root.
        """
        ...


class Heaviest:
    """A search that takes the heaviest nodes of its own reading of the lattice and of branches.

    A subclass says what may follow in the lattice; a path is a lattice with one token per column.
    """

    paper: ClassVar[str] = ""
    accepts: ClassVar[tuple[str, ...]] = ("match",)
    samples: ClassVar[bool] = False

    def read(self, lattice: Lattice, memory: Memory) -> Expand[Place]:
        """What may follow in a lattice of at least one column, none of them empty."""
        raise NotImplementedError

    def grow(self, root: int, lattice: Lattice, memory: Memory, drafts: int, rng: Rng) -> Tree:
        if drafts < 1:
            return Tree.root(root)
        branches = plant([*memory.branches(drafts), *lattice.branches])
        lattice = usable(lattice, drafts)
        steps = self.read(lattice, memory) if len(lattice) else nothing
        start: Place | Both[Place, Twig] = Both((0, ()), branches)
        return heaviest(root, fuse(steps, climb), start, drafts, lattice.eos)


def usable(lattice: Lattice, drafts: int) -> Lattice:
    """The lattice up to the first column without a token; no deeper than the budget reaches."""
    tokens, logp = lattice.tokens[:drafts], np.minimum(lattice.logp[:drafts], 0)
    empty = np.flatnonzero((logp == -np.inf).all(1))
    end = empty[0] if len(empty) else len(tokens)
    pairs = None if lattice.pairs is None else lattice.pairs[:end]
    return Lattice(tokens[:end], logp[:end], lattice.eos, pairs=pairs)


def along(lattice: Lattice, path: Sequence[int]) -> Expand[Place]:
    """A single path of candidates as what may follow, with the drafter's probabilities."""
    depths = range(len(path))
    tokens = [int(lattice.tokens[i, path[i]]) for i in depths]
    return line(tokens, [float(np.exp(lattice.given(path[:i])[path[i]])) for i in depths])


def nothing(place: Place) -> Sequence[Step[Place]]:
    """What follows in a lattice without columns."""
    return ()


def line(path: Sequence[int], weights: Sequence[float]) -> Expand[Place]:
    """A single path as what may follow."""

    def expand(place: Place) -> Sequence[Step[Place]]:
        depth, _ = place
        if depth == len(path) or not weights[depth] > 0:
            return ()
        return [(weights[depth], path[depth], "lattice", (depth + 1, ()))]

    return expand


@dataclass(frozen=True)
class Argmax(Heaviest):
    """The drafter's most likely token at each position, whatever stands beside it.

    With a Markov head: the most likely one behind the token before it.
    """

    def read(self, lattice: Lattice, memory: Memory) -> Expand[Place]:
        return along(lattice, lattice.path().tolist())


@dataclass(frozen=True)
class Cps(Heaviest):
    """Causal-consistency path search, as published (arXiv 2510.02358, section 3.2).

    A beam of `beam` paths maximises the sum of lam * ln m_i(v) + (1 - lam) * ln g(v | before) over
    columns cut to the fewest tokens that have `mass`, at most `width`, end tokens always kept. A
    path ends at its first end token and then competes with its score as it stands: nothing makes
    up for its length, as published. g is the memory's n-gram, where the paper trains one for each
    dataset. The nodes' weights are the drafter's probabilities; branches join the path. With a
    Markov head m_i is its law behind the token before.
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
class Product(Heaviest):
    """The heaviest nodes of the product of the marginals: DDTree (arXiv 2604.12989).

    gamma: sharpens each column before (1: as published). With a Markov head the factors are its
    conditionals.
    """

    paper = "DDTree, arXiv 2604.12989"
    gamma: float = 1.0

    def __post_init__(self) -> None:
        check_positive("gamma", self.gamma)

    def read(self, lattice: Lattice, memory: Memory) -> Expand[Place]:
        if lattice.pairs is not None:
            return MarkovChain(lattice.tokens, *drafted(lattice, self.gamma)).steps
        probs = np.exp(lattice.logp)
        probs = sharpened(probs, self.gamma, probs.sum(1, keepdims=True))
        order = np.argsort(-probs, kind="stable")
        columns = [
            [(weight, token, "lattice", (depth, ())) for weight, token in zip(*pair) if weight > 0]
            for depth, pair in enumerate(
                zip(
                    np.take_along_axis(probs, order, 1).tolist(),
                    np.take_along_axis(lattice.tokens, order, 1).tolist(),
                ),
                start=1,
            )
        ]
        columns.append([])
        return lambda place: columns[place[0]]


@dataclass(frozen=True)
class Coupled(Heaviest):
    """The heaviest nodes of the coupled lattice: what neighbours allow, with the right marginals.

    With a Markov head its conditionals stand in for the coupling.
    width: candidates per column.  sweeps: of the scaling, see couple.py.  gamma: sharpens the
    conditionals.  order: 3 corrects by the memory's longer contexts.
    smooth: share of the uniform law in the memory's.
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
