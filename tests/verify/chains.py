"""Drafters, a search and a source of a few lines, honest and adversarial."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from dllm.verify.draft.lattice import Branch, Lattice
from dllm.verify.rng import Rng
from dllm.verify.sources.memory import Memory, SourceSession
from dllm.verify.tree import Tree

# (context, depth) -> draft tokens
Says = Callable[[Sequence[int], int], Sequence[int]]


@dataclass
class FakeDrafter:
    """Says what `says` does, each token with probability `prob`; keeps what it was asked."""

    says: Says
    prob: float = 0.9
    eos: frozenset[int] = frozenset()
    limits: list[int] = field(default_factory=list)
    contexts: list[list[int]] = field(default_factory=list)

    def open(self, limits: Sequence[int]) -> FakeDrafter:
        self.limits += limits
        return self

    def propose(self, contexts: Sequence[Sequence[int]], depths: Sequence[int]) -> list[Lattice]:
        self.contexts += map(list, contexts)
        return [self.lattice(*pair) for pair in zip(contexts, depths)]

    def lattice(self, context: Sequence[int], depth: int) -> Lattice:
        tokens = np.array(self.says(context, depth), np.int64)[:, None]
        return Lattice(tokens, np.full(tokens.shape, np.log(self.prob)), self.eos)

    def keep(self, rows: Sequence[int]) -> None:
        pass


@dataclass(frozen=True)
class FirstPath:
    """The most likely token of every column, with every branch as a rival."""

    accepts: tuple[str, ...] = ("match",)
    samples: bool = False

    def grow(self, root: int, lattice: Lattice, memory: Memory, drafts: int, rng: Rng) -> Tree:
        tree, node = Tree.root(root), 0
        for depth in range(min(drafts, len(lattice))):
            weight = tree.weights[node] * np.exp(lattice.logp[depth, 0])
            node = tree.add(node, int(lattice.tokens[depth, 0]), float(weight), "model")
        for branch in memory.branches(drafts):
            node = 0
            for token, weight in zip(branch.tokens, branch.weights):
                node = tree.add(node, token, tree.weights[node] * weight, branch.source)
        return tree


@dataclass(frozen=True)
class Wrong:
    """Source that claims to know the next token; what it says stands at that place of `text`."""

    text: Sequence[int] = (9,) * 99

    def open(self) -> WrongSession:
        return WrongSession(self.text)


class WrongSession(SourceSession):
    name = "wrong"

    def __init__(self, text: Sequence[int]) -> None:
        self.text, self.place = text, 0

    def extend(self, tokens: Sequence[int]) -> None:
        self.place += len(tokens)

    def branches(self, depth: int) -> list[Branch]:
        return [Branch((token,), (0.9,), self.name) for token in self.text[self.place :][:1]]


@dataclass
class Copy:
    """Part and source: what followed the last token's latest occurrence in the text.

    The part keeps the source that it opened last.
    """

    weight: float = 0.95
    name: str = "copy"
    top: int = 8
    tokens: list[int] = field(default_factory=list)
    learned: list[tuple[list[int], NDArray[np.int64]]] = field(default_factory=list)

    def open(self) -> Copy:
        self.last = Copy(self.weight)
        return self.last

    def extend(self, tokens: Sequence[int]) -> None:
        self.tokens += tokens

    def learn(self, tokens: Sequence[int], top: NDArray[np.int64]) -> None:
        self.learned.append((list(tokens), top))

    def branches(self, depth: int) -> list[Branch]:
        last, before = self.tokens[-1], self.tokens[:-1]
        if last not in before:
            return []
        at = len(before) - before[::-1].index(last)
        found = tuple(self.tokens[at : at + depth])
        return [Branch(found, (self.weight,) * len(found), self.name)]

    def logp(self, context: Sequence[int], candidates: NDArray[np.int64]) -> None:
        return None

    def pairs(self, left: NDArray[np.int64], right: NDArray[np.int64]) -> None:
        return None
