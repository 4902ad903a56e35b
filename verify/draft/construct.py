"""Searches that draw trees from a lattice, for the acceptance rules of sampled.py.

The shape is planned first, from the lattice alone; then each column is drawn once, for all nodes of
its depth, since a walk passes each depth once. With a Markov head a column's distribution depends
on the token before, so that there is a draw for each node. Either way whether a node is verified
never depends on the token drawn for it. What stands below a drawn end token is left out: that
depends on a token which the walk has accepted already. Branches that were not drawn stand beside
the others.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import count, islice
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from dllm.checks import check_probability, check_whole
from dllm.verify.draft.lattice import TINY, Branch, Lattice
from dllm.verify.rng import Rng
from dllm.verify.sources.memory import Memory
from dllm.verify.tree import Distribution, Draw, Tree


@dataclass(frozen=True, slots=True)
class Slot:
    """A planned node below slot `parent` (-1: the root): a known token, or one that is drawn.

    pick: which draw of its parent's it takes (-1: none).  top: or which of the likeliest tokens
    there (-1: none).  token: or this one.
    """

    parent: int
    depth: int
    weight: float
    pick: int = -1
    top: int = -1
    token: int = -1
    source: str = "lattice"


@dataclass(frozen=True)
class Construction:
    """A search that draws; a subclass plans the shape and draws the columns.

    confidence: nothing is drafted from the first column on whose likeliest token is less probable.
    Weights say how often a node is accepted where the target's distributions are the drafter's
    marginals.
    """

    paper: ClassVar[str] = ""
    samples: ClassVar[bool] = True
    accepts: ClassVar[tuple[str, ...]] = ("match",)
    confidence: float = 0.0

    def __post_init__(self) -> None:
        check_probability("confidence", self.confidence)

    def plan(self, lattice: Lattice, depth: int) -> Iterator[Slot]:
        """Slots in the first `depth` columns, heaviest first: parents before their children."""
        raise NotImplementedError

    def column(self, distribution: Distribution, depth: int, rng: Rng) -> Draw:
        """Draws at that depth, as many as `plan` picks from; fewer if there are no more tokens."""
        raise NotImplementedError

    def depth(self, lattice: Lattice) -> int:
        """How many columns may be drafted; what was drawn plays no part."""
        best = chances(lattice).max(1, initial=0.0)
        return int(np.cumprod((best > 0) & (best >= self.confidence)).sum())

    def grow(self, root: int, lattice: Lattice, memory: Memory, drafts: int, rng: Rng) -> Tree:
        slots = list(islice(self.plan(lattice, self.depth(lattice)), drafts))
        slots += branch_slots([*memory.branches(drafts), *lattice.branches], len(slots))
        heaviest = sorted(range(len(slots)), key=lambda i: -slots[i].weight)[:drafts]
        tree, nodes = Tree.root(root), {-1: 0}
        columns = Columns(self, lattice, tree, rng)
        for i in heaviest:
            slot = slots[i]
            parent = nodes.get(slot.parent)
            if parent is None or (parent and tree.tokens[parent] in lattice.eos):
                continue
            token: int | None = slot.token
            if slot.top >= 0:
                token = columns.top(slot, parent)
            elif slot.pick >= 0:
                token = columns.drawn(slot, parent)
            if token is not None:
                nodes[i] = tree.add(parent, token, slot.weight, slot.source)
        return tree


class Columns:
    """Distributions of a lattice's columns below the nodes of a growing tree, and draws from them.

    One for all nodes of a depth, with pairs one for each node.
    """

    def __init__(self, search: Construction, lattice: Lattice, tree: Tree, rng: Rng) -> None:
        self.search, self.lattice, self.tree, self.rng = search, lattice, tree, rng
        self.distributions: dict[int, Distribution] = {}
        self.draws: dict[int, Draw] = {}

    def key(self, slot: Slot, parent: int) -> int:
        """What slots share a distribution and its draws by: their depth, or the node above them."""
        return slot.depth if self.lattice.pairs is None else parent

    def distribution(self, slot: Slot, parent: int) -> Distribution:
        key = self.key(slot, parent)
        if key not in self.distributions:
            if parent and self.lattice.pairs is not None:
                distribution = self.lattice.distribution_behind(
                    slot.depth, self.tree.tokens[parent]
                )
            else:
                distribution = self.lattice.distribution(slot.depth)
            self.distributions[key] = distribution
        return self.distributions[key]

    def top(self, slot: Slot, parent: int) -> int | None:
        """The token of a slot that is not drawn, if there is one."""
        tokens = self.distribution(slot, parent).tokens
        return int(tokens[slot.top]) if slot.top < len(tokens) else None

    def drawn(self, slot: Slot, parent: int) -> int | None:
        """The token of a slot that is, if there is one; the tree's node learns of the draw."""
        key = self.key(slot, parent)
        if key not in self.draws:
            self.draws[key] = self.search.column(
                self.distribution(slot, parent), slot.depth, self.rng
            )
        draw, draws = self.draws[key], self.tree.draws
        if slot.pick >= len(draw.tokens):
            return None
        before = draws[parent].tokens if parent in draws else ()
        token = draw.tokens[slot.pick]
        draws[parent] = Draw(draw.distribution, (*before, token))
        return token


@dataclass(frozen=True)
class SampledChain(Construction):
    """A chain of one token per column, each drawn from the column's own distribution.

    Where no token of a column has the probability `confidence`, nothing is drafted from it on.
    """

    accepts: ClassVar[tuple[str, ...]] = ("block", "ratio", "match")

    def plan(self, lattice: Lattice, depth: int) -> Iterator[Slot]:
        for i, weight in enumerate(np.cumprod(shares(lattice))[:depth]):
            yield Slot(i - 1, i, float(weight), pick=0)

    def column(self, distribution: Distribution, depth: int, rng: Rng) -> Draw:
        return Draw(distribution, drawn(distribution, 1, rng))


@dataclass(frozen=True)
class GreedyPlusOne(Construction):
    """Children: the likeliest tokens of a column and one drawn from the rest, heaviest nodes first.

    The ratio rule keeps such drafts as often as any rule could. tops: how many children of a node
    are not drawn. Where no token of a column has the probability `confidence`, nothing is drafted
    from it on.
    """

    paper = "Greedy draft construction, arXiv 2502.18779"

    accepts: ClassVar[tuple[str, ...]] = ("ratio", "match")
    tops: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("tops", self.tops, 0)

    def plan(self, lattice: Lattice, depth: int) -> Iterator[Slot]:
        column, ends = chances(lattice), self.ends(lattice, depth)
        tops, rest = column[:, : self.tops], column[:, self.tops :].sum(1, keepdims=True)
        children = np.concatenate([tops, rest], 1).tolist()
        heap, age = list[tuple[float, int, Slot]](), count()  # of equal weights the oldest first
        index, last = -1, Slot(-1, -1, 1.0)
        while True:
            below = last.depth + 1
            if below < depth and (last.depth, last.top) not in ends:
                for top, chance in enumerate(children[below]):
                    weight = last.weight * chance
                    if weight > 0:
                        pick, top = (-1, top) if top < tops.shape[1] else (0, -1)
                        slot = Slot(index, below, weight, pick, top)
                        heapq.heappush(heap, (-weight, next(age), slot))
            if not heap:
                return
            index, last = index + 1, heapq.heappop(heap)[2]
            yield last

    def ends(self, lattice: Lattice, depth: int) -> set[tuple[int, int]]:
        """(depth, top) of the likeliest tokens that are known to be ends while it is planned."""
        known = depth if lattice.pairs is None else min(depth, 1)
        tokens = [lattice.distribution(i).tokens[: self.tops].tolist() for i in range(known)]
        return {
            (i, top)
            for i, column in enumerate(tokens)
            for top, token in enumerate(column)
            if token in lattice.eos
        }

    def column(self, distribution: Distribution, depth: int, rng: Rng) -> Draw:
        rest = distribution.without(distribution.tokens[: self.tops].tolist())
        return Draw(rest, drawn(rest, 1, rng))


def chances(lattice: Lattice) -> NDArray[np.float64]:
    """[K, M] probability of a column's likeliest token, of the next, and so on, at most 1 together.

    With pairs the mean of that over the candidates before, as likely as they are.
    """
    probs = -np.sort(-np.exp(lattice.logp), 1)
    if lattice.pairs is not None:
        before = np.exp(lattice.logp[:-1])
        before /= np.maximum(before.sum(1, keepdims=True), TINY)
        behind = -np.sort(-np.exp(lattice.pairs[1:]), -1)
        probs[1:] = np.einsum("ku,kuv->kv", before, behind)
    return np.asarray(probs / np.maximum(probs.sum(1, keepdims=True), 1.0))


def shares(lattice: Lattice) -> NDArray[np.float64]:
    """[K] sum min(m, q) of a column's marginal m and its distribution q: the mass that was kept."""
    return np.asarray(chances(lattice).sum(1))


def drawn(distribution: Distribution, count: int, rng: Rng) -> tuple[int, ...]:
    """`count` independent tokens of the distribution; none of a distribution without tokens."""
    if not len(distribution.tokens):
        return ()
    probs = torch.from_numpy(distribution.probs)
    return tuple(int(distribution.tokens[rng.choice(probs)]) for _ in range(count))


def branch_slots(branches: Iterable[Branch], first: int) -> list[Slot]:
    """Branches as slots; the first of them is slot `first`."""
    slots: list[Slot] = []
    for branch in branches:
        parent, weight = -1, 1.0
        for i, (token, share) in enumerate(zip(branch.tokens, branch.weights)):
            weight *= share
            slots.append(Slot(parent, i, weight, token=token, source=branch.source))
            parent = first + len(slots) - 1
    return slots
