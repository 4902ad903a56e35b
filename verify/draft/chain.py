"""Drafts for a loop that is not ours: one text, and for each of its rounds a chain of tokens.

Whoever asks checks the chain himself: by drawing from the target and comparing, never by a ratio
with the drafter's probabilities, since these tokens are searched for and not drawn from them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter

import numpy as np
import torch
from numpy.typing import NDArray

from dllm.verify.control.controllers import ControlPart, Observed, Spent
from dllm.verify.draft.lattice import Lattice
from dllm.verify.draft.search import Search
from dllm.verify.protocol import Drafter
from dllm.verify.rng import TorchRng
from dllm.verify.sources.memory import Memory, SourcePart
from dllm.verify.tree import Tree


@dataclass(frozen=True)
class Chains:
    """What chains are made with.

    drafter: none for model-free drafts only.  vocab_size: of the target; a chain ends before an id
    that is not below it.  seed: of a search that draws, which does so apart from the target.
    """

    search: Search
    control: ControlPart
    vocab_size: int
    drafter: Drafter | None = None
    sources: Sequence[SourcePart] = ()
    seed: int = 0

    def open(self, budget: int) -> Chain:
        """Begin a text that will not be longer than `budget` tokens, prompt included."""
        return Chain(self, budget)


class Chain:
    """One text. `propose` reads it as it grows, and sees from that what was accepted."""

    def __init__(self, parts: Chains, budget: int) -> None:
        self.parts = parts
        self.budget = budget
        self.context: list[int] = []
        self._session = parts.drafter.open([budget]) if parts.drafter else None
        self._memory = Memory([part.open() for part in parts.sources])
        self._control = parts.control.open(1)
        self._rng = TorchRng(torch.Generator().manual_seed(parts.seed))
        self._tokens: list[int] = []  # the chain of this round
        self._weights = np.zeros(0)
        self._depth = self._end = 0
        self._draft = self._host = self._since = 0.0  # seconds, seconds, the clock

    def continues(self, context: Sequence[int]) -> bool:
        """Whether `context` is this text, and longer."""
        n = len(self.context)
        if len(context) <= n or list(context[n - 1 : n]) != self.context[-1:]:  # soon seen
            return False
        return list(context[:n]) == self.context

    def propose(self, context: Sequence[int], most: int) -> list[int]:
        """Up to `most` tokens behind `context`, which continues that of the call before."""
        began = perf_counter()
        new = list(context[len(self.context) :])
        if self.context:
            self._settle(new, began - self._since)
        self._memory.extend(new)
        self.context += new
        most = max(min(most, self.budget - len(self.context) - 1), 0)
        drafts = min(self._control.drafts(0), most)
        self._depth = min(self._control.depth(0), most) if drafts and self._session else 0
        lattice = self._ask()
        self._draft = perf_counter() - began
        self._end = lattice.first_end()
        self._tokens, weights = self._chain(lattice, drafts, most)
        size = self._control.sizes([weights])[0]
        self._tokens, self._weights = self._tokens[:size], weights[:size]
        self._since = perf_counter()
        self._host = self._since - began - self._draft
        return list(self._tokens)

    @property
    def top(self) -> int:
        """How many tokens behind each verified one `learn` wants; 0: it need not be called."""
        return self._memory.top

    def learn(self, top: NDArray[np.int64]) -> None:
        """top [n, k]: what the target finds most likely behind the text and its drafts."""
        verified = [self.context[-1], *self._tokens]
        self._memory.learn(verified[: len(top)], top)

    def _ask(self) -> Lattice:
        if self._session is None or not self._depth:
            return Lattice.empty()
        lattice = self._session.propose([self.context], [self._depth])[0]
        return lattice.checked(self.parts.vocab_size, self._depth)

    def _chain(
        self, lattice: Lattice, drafts: int, most: int
    ) -> tuple[list[int], NDArray[np.float64]]:
        """Tokens and weights of the tree's heaviest path."""
        if not drafts:
            return [], np.zeros(0)
        tree = self.parts.search.grow(self.context[-1], lattice, self._memory, drafts, self._rng)
        tree = tree.within(most, self.parts.vocab_size)
        nodes = heaviest(tree)[:drafts]
        return [tree.tokens[i] for i in nodes], np.array([tree.weights[i] for i in nodes], float)

    def _settle(self, new: Sequence[int], verify: float) -> None:
        """Tell the control what came of the last chain, now that the text is longer by `new`."""
        same = [draft == token for draft, token in zip(self._tokens, new)]
        accepted = same.index(False) if False in same else len(same)
        drafts = len(self._tokens)
        kept = np.arange(drafts) < accepted
        seen = Observed(self._depth, self._end, drafts, accepted, self._weights, kept)
        self._control.observe(0, seen)
        self._control.spent(Spent(1, 1 + drafts, self._depth, self._draft, verify, self._host))


def heaviest(tree: Tree) -> list[int]:
    """Nodes of the path that goes from the root to the heaviest child, and so on to a leaf."""
    best: dict[int, int] = {}
    for node in range(1, len(tree)):
        rival = best.get(tree.parents[node])
        if rival is None or tree.weights[node] > tree.weights[rival]:
            best[tree.parents[node]] = node
    nodes, node = list[int](), 0
    while node in best:
        nodes.append(node := best[node])
    return nodes
