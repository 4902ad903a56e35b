"""Token recycling (arXiv 2408.08696): tokens that the target last found likely behind another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dllm.checks import check_whole
from dllm.verify.draft.heap import Step, heaviest_tree
from dllm.verify.draft.lattice import Branch
from dllm.verify.sources.memory import Array, Ids, Rate, SourceSession

NAME = "recycling"
DECAY = 0.998  # of the average of how often the best token is the n-th of the last time


@dataclass(frozen=True)
class Recycling:
    """The target's last `top` candidates behind each token, as a proxy and for branches.

    The paper's tree has a fixed shape; here its `nodes` are the likeliest, by how often the
    target's best token behind a token was the n-th of the last time. nodes: 0 leaves it a proxy.
    """

    top: int = 8
    nodes: int = 16

    def __post_init__(self) -> None:
        check_whole("top", self.top, 1, 1024)
        check_whole("nodes", self.nodes, 0)

    def open(self) -> Adjacency:
        return Adjacency(self.top, self.nodes)


class Adjacency(SourceSession):
    """One row's candidates behind each token that the target has read."""

    name = NAME

    def __init__(self, top: int, nodes: int) -> None:
        self.top, self.nodes = top, nodes
        self.last: int | None = None
        self.behind: dict[int, list[int]] = {}
        self.rates = [Rate() for _ in range(top)]

    def extend(self, tokens: Sequence[int]) -> None:
        if len(tokens):
            self.last = tokens[-1]

    def learn(self, tokens: Sequence[int], top: Ids) -> None:
        for token, best in zip(tokens, top[:, : self.top].tolist()):
            for rank, known in enumerate(self.behind.get(token, ())):
                self.rates[rank].add(known == best[0], DECAY)
            self.behind[token] = best

    def weights(self) -> list[float]:
        """Probability that the n-th candidate comes; 1/2, 1/4, ... until it is known better."""
        return [rate.given(0.5 ** (rank + 1), 4.0) for rank, rate in enumerate(self.rates)]

    def branches(self, depth: int) -> list[Branch]:
        if self.last is None or not depth:
            return []
        ranked = sorted(enumerate(self.weights()), key=lambda pair: -pair[1])

        def expand(state: tuple[int, int]) -> list[Step[tuple[int, int]]]:
            level, before = state
            known = self.behind.get(before, []) if level < depth else []
            return [
                (weight, known[rank], NAME, (level + 1, known[rank]))
                for rank, weight in ranked
                if rank < len(known)
            ]

        tree = heaviest_tree(self.last, expand, (0, self.last), self.nodes)
        leaves = sorted({*range(1, len(tree))} - {*tree.parents})
        given = [w / tree.weights[p] for w, p in zip(tree.weights, tree.parents)]
        return [
            Branch(tuple(tree.tokens[node] for node in path), tuple(given[n] for n in path), NAME)
            for path in map(tree.path, leaves)
        ]

    def known(self, token: int, weights: Sequence[float], candidates: Sequence[int]) -> list[float]:
        """g(candidate | token). What the listed ones leave is shared by all tokens seen so far."""
        listed = dict(zip(self.behind.get(token, ()), weights))
        rest = max(1 - sum(listed.values()), 0.01) / (len(self.behind) + 1)
        return [listed.get(candidate, rest) for candidate in candidates]

    def logp(self, context: Sequence[int], candidates: Ids) -> Array:
        before = [self.last, *context][-1]
        given = self.known(-1 if before is None else before, self.weights(), candidates.tolist())
        return np.asarray(np.log(given))

    def pairs(self, left: Ids, right: Ids) -> Array:
        weights = self.weights()
        return np.array(
            [
                [self.known(u, weights, behind) for u in before]
                for before, behind in zip(left.tolist(), right.tolist())
            ]
        ).reshape(*left.shape, right.shape[-1])
