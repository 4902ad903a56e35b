"""Trees whose tokens are drawn from a lattice, for the acceptance rules of sampled.py.

The shape is planned first, from the marginals alone; then each column is drawn once, for all nodes
of its depth, since a walk passes each depth once. So whether a node is verified never depends on
the token drawn for it. What stands below a drawn end token is left out: that depends on a token
which the walk has accepted already. Branches that were not drawn stand beside the others.
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

from dllm.verify.control import check_count
from dllm.verify.lattice import Branch, Lattice
from dllm.verify.rng import Rng
from dllm.verify.sources import Memory
from dllm.verify.tree import Draw, Law, Tree


@dataclass(frozen=True, slots=True)
class Slot:
    """A planned node below slot `parent` (-1: the root): a known token, or one that is drawn.

    pick: which draw of its depth's column it takes (-1: none, `token` is known).
    """

    parent: int
    depth: int
    weight: float
    pick: int = -1
    token: int = -1
    source: str = "lattice"


@dataclass(frozen=True)
class Construction:
    """A search that draws; a subclass plans the shape and draws the columns.

    confidence: nothing is drafted from the first column on whose likeliest token is less probable.
    Weights say how often a node is accepted where the target's laws are the drafter's marginals.
    """

    paper: ClassVar[str] = ""
    samples: ClassVar[bool] = True
    accepts: ClassVar[tuple[str, ...]] = ("match",)
    confidence: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.confidence <= 1:
            raise ValueError(f"confidence={self.confidence}: expected a probability from 0 to 1")

    def plan(self, lattice: Lattice, depth: int) -> Iterator[Slot]:
        """Slots in the first `depth` columns, heaviest first: parents before their children."""
        raise NotImplementedError

    def column(self, lattice: Lattice, depth: int, rng: Rng) -> Draw:
        """The draws of one depth, as many as `plan` picks from."""
        raise NotImplementedError

    def depth(self, lattice: Lattice) -> int:
        """How many columns may be drafted; what was drawn plays no part."""
        best = np.exp(lattice.logp).max(1, initial=0.0)
        return int(np.cumprod((best > 0) & (best >= self.confidence)).sum())

    def grow(self, root: int, lattice: Lattice, memory: Memory, drafts: int, rng: Rng) -> Tree:
        slots = list(islice(self.plan(lattice, self.depth(lattice)), drafts))
        slots += branch_slots([*memory.branches(drafts), *lattice.branches], len(slots))
        heaviest = sorted(range(len(slots)), key=lambda i: -slots[i].weight)[:drafts]
        tree, nodes, columns = Tree.root(root), {-1: 0}, dict[int, Draw]()
        for i in heaviest:
            slot = slots[i]
            parent = nodes.get(slot.parent)
            if parent is None or (parent and tree.tokens[parent] in lattice.eos):
                continue
            token = slot.token
            if slot.pick >= 0:
                if slot.depth not in columns:
                    columns[slot.depth] = self.column(lattice, slot.depth, rng)
                column = columns[slot.depth]
                token = column.tokens[slot.pick]
                before = tree.draws[parent].tokens if parent in tree.draws else ()
                tree.draws[parent] = Draw(column.law, (*before, token))
            nodes[i] = tree.add(parent, token, slot.weight, slot.source)
        return tree


@dataclass(frozen=True)
class Sample(Construction):
    """A chain of one token per column, each drawn from the column's own law."""

    accepts: ClassVar[tuple[str, ...]] = ("block", "ratio", "match")

    def plan(self, lattice: Lattice, depth: int) -> Iterator[Slot]:
        for i, weight in enumerate(np.cumprod(shares(lattice))[:depth]):
            yield Slot(i - 1, i, float(weight), pick=0)

    def column(self, lattice: Lattice, depth: int, rng: Rng) -> Draw:
        law = lattice.law(depth)
        return Draw(law, (drawn(law, rng),))


@dataclass(frozen=True)
class RsdTree(Construction):
    """At each depth a set of tokens drawn without replacement, below every node of the last depth.

    RSD with constant branching, but one set for all nodes of a depth.  widths: tokens per depth;
    the last goes on for deeper columns.
    """

    paper = "RSD, arXiv 2402.14160"

    accepts: ClassVar[tuple[str, ...]] = ("rsd", "ratio", "match")
    widths: tuple[int, ...] = (3, 2, 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.widths or min(self.widths) < 1:
            text = "+".join(map(str, self.widths))
            raise ValueError(f"widths={text}: expected whole numbers of at least 1 joined by +")

    def width(self, lattice: Lattice, depth: int) -> int:
        wanted = self.widths[min(depth, len(self.widths) - 1)]
        return min(wanted, int(np.count_nonzero(lattice.law(depth).probs)))

    def plan(self, lattice: Lattice, depth: int) -> Iterator[Slot]:
        share, last, count = shares(lattice), [(-1, 1.0)], 0
        for i in range(depth):
            width, above, last = self.width(lattice, i), last, []
            for parent, weight in above:
                weight *= share[i] / width
                for pick in range(width):
                    yield Slot(parent, i, weight, pick)
                    last.append((count, weight))
                    count += 1

    def column(self, lattice: Lattice, depth: int, rng: Rng) -> Draw:
        law, tokens = lattice.law(depth), list[int]()
        for _ in range(self.width(lattice, depth)):
            tokens.append(drawn(law.without(tokens), rng))
        return Draw(law, tuple(tokens))


@dataclass(frozen=True)
class KSeqTree(Construction):
    """Several independent chains as one tree, in which equal prefixes merge."""

    paper = "SpecTr, arXiv 2310.15141"

    accepts: ClassVar[tuple[str, ...]] = ("kseq", "ratio", "match")
    chains: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("chains", self.chains, 1)

    def plan(self, lattice: Lattice, depth: int) -> Iterator[Slot]:
        for i, weight in enumerate(np.cumprod(shares(lattice))[:depth]):
            for chain in range(self.chains):
                parent = (i - 1) * self.chains + chain if i else -1
                yield Slot(parent, i, float(weight) / self.chains, chain)

    def column(self, lattice: Lattice, depth: int, rng: Rng) -> Draw:
        law = lattice.law(depth)
        return Draw(law, tuple(drawn(law, rng) for _ in range(self.chains)))


@dataclass(frozen=True)
class GreedyPlusOne(Construction):
    """Children: the likeliest tokens of a column and one drawn from the rest, heaviest nodes first.

    The ratio rule keeps such drafts as often as any rule could.  tops: how many children of a node
    are not drawn.
    """

    paper = "Greedy draft construction, arXiv 2502.18779"

    accepts: ClassVar[tuple[str, ...]] = ("ratio", "match")
    tops: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("tops", self.tops, 0)

    def plan(self, lattice: Lattice, depth: int) -> Iterator[Slot]:
        children = [self.children(lattice, i) for i in range(depth)]
        heap, age = list[tuple[float, int, Slot]](), count()  # of equal weights the oldest first
        index, last = -1, Slot(-1, -1, 1.0)
        while True:
            below = last.depth + 1
            if below < depth and last.token not in lattice.eos:
                for token, chance in children[below]:
                    weight = last.weight * chance
                    slot = Slot(index, below, weight, -1 if token >= 0 else 0, token)
                    heapq.heappush(heap, (-weight, next(age), slot))
            if not heap:
                return
            index, last = index + 1, heapq.heappop(heap)[2]
            yield last

    def children(self, lattice: Lattice, depth: int) -> list[tuple[int, float]]:
        """(token, chance) of a node's children in that column; token -1: the drawn one."""
        law, mass = lattice.law(depth), shares(lattice)[depth]
        chances = law.probs * mass
        tops = list(zip(law.tokens[: self.tops].tolist(), chances.tolist()))
        rest = float(chances[self.tops :].sum())
        return [*tops, (-1, rest)] if rest > 0 else tops

    def column(self, lattice: Lattice, depth: int, rng: Rng) -> Draw:
        law = lattice.law(depth)
        rest = law.without(law.tokens[: self.tops].tolist())
        return Draw(rest, (drawn(rest, rng),))


def shares(lattice: Lattice) -> NDArray[np.float64]:
    """[K] sum min(m, q) of a column's marginal m and its law q: the mass that was kept."""
    return np.minimum(lattice.mass, 1.0)


def drawn(law: Law, rng: Rng) -> int:
    """A token of the law."""
    return int(law.tokens[rng.choice(torch.from_numpy(law.probs))])


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
