"""Tree of draft tokens, verified in one pass of the target. Tokens and numbers only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Distribution:
    """Probabilities of a few tokens: tokens [M] distinct, probs [M] that sum to 1."""

    tokens: NDArray[np.int64]
    probs: NDArray[np.float64]

    def prob(self, token: int) -> float:
        """Probability of one token; 0 for one that is not among them."""
        return float(self.probs[self.tokens == token].sum())

    def without(self, taken: Sequence[int]) -> Distribution:
        """The same given that none of `taken` comes, normalised; empty when nothing is left."""
        keep = ~np.isin(self.tokens, list(taken)) & (self.probs > 0)
        tokens, probs = self.tokens[keep], self.probs[keep]
        return Distribution(tokens, probs / probs.sum() if len(probs) else probs)


@dataclass(frozen=True, slots=True)
class Draw:
    """How the sampled children of one node came about; an acceptance rule needs it, see
    accept/sampled.py.

    distribution: what the first of `tokens` was drawn from.  tokens: in the order they were drawn,
    with repetitions where the draws were independent.
    """

    distribution: Distribution
    tokens: tuple[int, ...]


@dataclass(slots=True)
class Tree:
    """Draft tokens of one row behind its last committed token. Parents stand before children.

    Node 0 is the root: the last committed token itself, which is no draft. No two children of a
    node have the same token. A node's weight is the estimated probability that the target's own
    text goes through it (1 at the root); sources say who proposed it.
    draws: node -> how its sampled children were drawn (absent where all are deterministic).
    """

    tokens: list[int]
    parents: list[int] = field(default_factory=lambda: [-1])
    weights: list[float] = field(default_factory=lambda: [1.0])
    sources: list[str] = field(default_factory=lambda: ["root"])
    draws: dict[int, Draw] = field(default_factory=dict)
    _children: dict[tuple[int, int], int] = field(default_factory=dict)

    @classmethod
    def root(cls, token: int) -> Tree:
        """A tree without drafts behind `token`."""
        return cls([token])

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def drafts(self) -> int:
        """Number of nodes without the root."""
        return len(self.tokens) - 1

    def add(self, parent: int, token: int, weight: float, source: str) -> int:
        """The child of `parent` with this token: a new node, or the one that is there already."""
        known = self._children.get((parent, token))
        if known is not None:
            return known
        self._children[parent, token] = node = len(self.tokens)
        self.tokens.append(token)
        self.parents.append(parent)
        self.weights.append(weight)
        self.sources.append(source)
        return node

    def child(self, node: int, token: int) -> int | None:
        """The child of `node` with this token, if it is in the tree."""
        return self._children.get((node, token))

    def children(self, node: int) -> list[int]:
        """All children of `node`, in the order they were added."""
        return [child for child, parent in enumerate(self.parents) if parent == node]

    def chain(self) -> list[int]:
        """From the root on the first sampled child of each node, as far as there is one."""
        nodes = [0]
        while draw := self.draws.get(nodes[-1]):
            child = self.child(nodes[-1], draw.tokens[0])
            if child is None:
                break
            nodes.append(child)
        return nodes

    def heaviest_path(self) -> Tree:
        """A tree of one path: from the root to the heaviest child, and so on to a leaf.

        Among equals the child that was added first. Draws are left out: who takes one path of a
        tree by its weights, and compares it with what is emitted, has no use for them.
        """
        best: dict[int, int] = {}
        for node in range(1, len(self)):
            rival = best.get(self.parents[node])
            if rival is None or self.weights[node] > self.weights[rival]:
                best[self.parents[node]] = node
        path, node = Tree.root(self.tokens[0]), 0
        while node in best:
            node = best[node]
            path.add(path.drafts, self.tokens[node], self.weights[node], self.sources[node])
        return path

    def path(self, node: int) -> list[int]:
        """Nodes from the root's child down to `node`; empty for the root."""
        nodes = []
        while node > 0:
            nodes.append(node)
            node = self.parents[node]
        return nodes[::-1]

    def follow(self, tokens: Sequence[int]) -> list[int]:
        """The nodes that `tokens` go through below the root, as far as the tree has them."""
        node, nodes = 0, []
        for token in tokens:
            child = self.child(node, token)
            if child is None:
                break
            nodes.append(node := child)
        return nodes

    def depths(self) -> list[int]:
        """Edges between the root and every node."""
        depths = [0]
        for parent in self.parents[1:]:
            depths.append(depths[parent] + 1)
        return depths

    def ancestors(self) -> NDArray[np.bool_]:
        """[n, n] bool: row i is true at node i and at every node above it."""
        mask = np.eye(len(self), dtype=bool)
        for node in range(1, len(self)):
            mask[node] |= mask[self.parents[node]]
        return mask

    def cut(self, drafts: int) -> Tree:
        """The first `drafts` nodes behind the root, in the order they were added."""
        n = drafts + 1
        if n >= len(self):
            return self
        children = {edge: node for edge, node in self._children.items() if node < n}
        draws = {node: draw for node, draw in self.draws.items() if node < n}
        return Tree(
            self.tokens[:n], self.parents[:n], self.weights[:n], self.sources[:n], draws, children
        )

    def within(self, depth: int, vocab_size: int) -> Tree:
        """Without the nodes deeper than `depth`, those of no token of the vocabulary, and all
        behind them."""
        depths = self.depths()
        if max(depths) <= depth and min(self.tokens) >= 0 and max(self.tokens) < vocab_size:
            return self
        kept, fresh = {0: 0}, Tree.root(self.tokens[0])
        for node in range(1, len(self)):
            token, parent = self.tokens[node], self.parents[node]
            if parent in kept and depths[node] <= depth and 0 <= token < vocab_size:
                kept[node] = fresh.add(kept[parent], token, self.weights[node], self.sources[node])
        fresh.draws = {kept[node]: draw for node, draw in self.draws.items() if node in kept}
        return fresh
