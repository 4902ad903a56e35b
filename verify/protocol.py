"""Protocols of the two models of the loop. Both keep their keys and values between rounds.

Rows are those that are still alive, in order; `keep` drops the finished ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from dllm.verify.draft.lattice import Lattice
from dllm.verify.tree import Tree


class Scored(Protocol):
    """The target's logits for the trees of one pass."""

    def row(self, row: int, node: int) -> Tensor:
        """Logits [V] in fp32 behind one node, on the target's device; unprocessed."""
        ...

    def best(self) -> list[list[int]]:
        """The most likely token behind every node of every row, with one transfer to the host."""
        ...

    def top(self, row: int, count: int) -> NDArray[np.int64]:
        """[n, count] the most likely tokens behind the row's n nodes, best first."""
        ...


class TargetSession(Protocol):
    """The target, reading a batch of texts as they grow.

    Of each row all committed tokens but the last are in its cache, or wait to go there with the
    next pass (the prompt, at first); the last one is the root of the next tree.
    """

    def score(self, trees: Sequence[Tree]) -> Scored:
        """One pass over all rows' trees, whatever their shapes, and the tokens that wait."""
        ...

    def commit(self, nodes: Sequence[Sequence[int]]) -> None:
        """Of the last pass keep the keys and values of these nodes (a path from the root, with
        it) of each row, forget the others."""
        ...

    def keep(self, rows: Sequence[int]) -> None:
        """Only these rows go on."""
        ...


class Target(Protocol):
    """An autoregressive model: it says what the text is."""

    @property
    def vocab_size(self) -> int: ...

    def open(self, prompts: Sequence[Sequence[int]], budgets: Sequence[int]) -> TargetSession:
        """Begin a batch: prompts of at least one token, each growing by up to its token budget."""
        ...


class DraftSession(Protocol):
    """A drafter, reading a batch of texts as they grow."""

    def propose(self, contexts: Sequence[Sequence[int]], depths: Sequence[int]) -> list[Lattice]:
        """Columns for the positions behind each context, in the target's ids; none at depth 0.

        contexts: all committed tokens of every live row; they begin with those of the last call.
        """
        ...

    def keep(self, rows: Sequence[int]) -> None:
        """Only these rows go on."""
        ...


class Drafter(Protocol):
    """Anything that proposes; whatever it says, the target's text stays the same."""

    def open(self, limits: Sequence[int]) -> DraftSession:
        """Begin a batch whose texts will not be longer than `limits` tokens, prompt included."""
        ...
