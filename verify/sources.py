"""What can be drafted without a model: continuations and conditional probabilities from text.

A `Source` reads one row's tokens as they come, and answers from them: which continuations it has
(`branches`) and how likely a token is behind others (`logp`, which couples a lattice's columns).
`Memory` holds the sources of one row, and calibrates their weights by what was accepted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dllm.verify.lattice import Branch
from dllm.verify.tree import Tree


class Source(Protocol):
    """One row's view of a model-free drafter. A part's `open()` gives a fresh one for each row."""

    @property
    def name(self) -> str: ...

    def extend(self, tokens: Sequence[int]) -> None:
        """Tokens that were committed: first the whole prompt, then what each round emits."""
        ...

    def learn(self, tokens: Sequence[int], top: NDArray[np.int64]) -> None:
        """What the target finds most likely behind each verified token: top [n, k], best first."""
        ...

    def branches(self, depth: int) -> list[Branch]:
        """Continuations of the committed text, of at most `depth` tokens."""
        ...

    def logp(self, context: Sequence[int], candidates: NDArray[np.int64]) -> NDArray[np.float64]:
        """ln g(candidate | context) [M]; `context` are tokens behind the committed text."""
        ...


class SourcePart(Protocol):
    """A frozen dataclass of knobs; `open` begins a row."""

    def open(self) -> Source: ...


class Memory:
    """The sources of one row behind one face.

    top: how many of the target's most likely tokens behind each node `learn` wants; 0: none.
    """

    top = 0

    def __init__(self, sources: Sequence[Source] = ()) -> None:
        self.sources = tuple(sources)

    def extend(self, tokens: Sequence[int]) -> None:
        for source in self.sources:
            source.extend(tokens)

    def learn(self, tokens: Sequence[int], top: NDArray[np.int64]) -> None:
        for source in self.sources:
            source.learn(tokens, top)

    def branches(self, depth: int) -> list[Branch]:
        return [branch for source in self.sources for branch in source.branches(depth)]

    def judge(self, tree: Tree, path: Sequence[int]) -> None:
        """Learn from what was accepted: the nodes `path` of a tree that these branches fed."""
