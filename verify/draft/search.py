"""Searches: from a lattice and model-free branches to the tree that the target verifies.

`Search` is the interface, one class per method; see heap.py, markov.py and sources/ for what they
use, construct.py and research/ for others. Nothing is drawn at random here: a tree is a function of
the text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np

from dllm.checks import check_positive
from dllm.verify.draft.heap import BranchNode, Expand, JointNode, Step, fuse, heaviest_tree, trie
from dllm.verify.draft.lattice import Lattice
from dllm.verify.draft.markov import MarkovChain, Place, drafted, sharpened
from dllm.verify.rng import Rng
from dllm.verify.sources.memory import Memory
from dllm.verify.tree import Tree


class Search(Protocol):
    """How trees are made: a frozen dataclass of options.

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


class HeaviestSearch:
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
        branches = trie([*memory.branches(drafts), *lattice.branches])
        lattice = usable(lattice, drafts)
        steps = self.read(lattice, memory) if len(lattice) else nothing
        start: Place | JointNode[Place, BranchNode] = JointNode((0, ()), branches)
        return heaviest_tree(root, fuse(steps, BranchNode.steps), start, drafts, lattice.eos)


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
class Argmax(HeaviestSearch):
    """The drafter's most likely token at each position, whatever stands beside it.

    With a Markov head: the most likely one behind the token before it.
    """

    def read(self, lattice: Lattice, memory: Memory) -> Expand[Place]:
        return along(lattice, lattice.path().tolist())


@dataclass(frozen=True)
class Product(HeaviestSearch):
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
