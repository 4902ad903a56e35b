"""Queries of one pass of the target: waiting tokens and trees of all rows, on one axis of queries.

    columns   | padding, waiting tokens | root, nodes of the tree, padding |
                                          ^ the last `width` columns, whose logits are needed

Numbers only; it knows no cache and no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dllm.verify.tree import Tree


@dataclass(frozen=True, slots=True)
class Queries:
    """tokens, pos [B, Q]; hidden [B, Q, Q]: queries (last axis) that a query does not see.

    waiting [B]: tokens of each row in front of its root.  width: columns from the roots on.
    A column of padding sees itself, and no other column sees it.
    """

    tokens: NDArray[np.int64]
    pos: NDArray[np.int64]
    hidden: NDArray[np.bool_]
    waiting: NDArray[np.int64]
    width: int

    @property
    def farthest(self) -> int:
        """The last position."""
        return int(self.pos.max(initial=0))

    @property
    def causal(self) -> bool:
        """True if every query sees all before it: no padding and no branches."""
        later = ~np.tri(self.tokens.shape[1], dtype=bool)
        return bool((self.hidden == later).all())

    def kept(self, nodes: Sequence[Sequence[int]]) -> NDArray[np.bool_]:
        """[B, Q] true at the waiting tokens and at these nodes of each row."""
        keep = np.zeros_like(self.tokens, bool)
        root = self.tokens.shape[1] - self.width
        for row, (chosen, waiting) in enumerate(zip(nodes, self.waiting, strict=True)):
            keep[row, root - waiting : root] = True
            keep[row, [root + node for node in chosen]] = True
        return keep


def lay_out(
    lengths: NDArray[np.int64], waiting: Sequence[Sequence[int]], trees: Sequence[Tree] = ()
) -> Queries:
    """Queries of rows with `lengths` [B] tokens in the cache; without trees the waiting only."""
    counts = np.array([len(tokens) for tokens in waiting], np.int64)
    width = max((len(tree) for tree in trees), default=0)
    root = int(counts.max(initial=0))
    size = root + width
    tokens = np.zeros((len(waiting), size), np.int64)
    pos = np.zeros_like(tokens)
    hidden = np.repeat(~np.eye(size, dtype=bool)[None], len(waiting), 0)
    for row, (start, ids) in enumerate(zip(lengths, waiting, strict=True)):
        first = root - len(ids)
        if ids:
            tokens[row, first:root] = ids
            pos[row, first:root] = start + np.arange(len(ids))
            hidden[row, first:root, first:root] = ~np.tri(len(ids), dtype=bool)
        if trees:
            tree, end = trees[row], root + len(trees[row])
            tokens[row, root:end] = tree.tokens
            pos[row, root:end] = start + len(ids) + np.array(tree.depths())
            hidden[row, root:end, first:root] = False
            hidden[row, root:end, root:end] = ~tree.ancestors()
    return Queries(tokens, pos, hidden, counts, width)
