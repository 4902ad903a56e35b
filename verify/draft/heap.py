"""Heap search: the N heaviest nodes of a tree that is given by what may follow what.

A weight is the product of conditional weights of at most 1 along the path, so it never rises on
the way down: a heap that holds the children of what it gave out gives all nodes in order.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count
from typing import Generic, TypeVar

from dllm.verify.draft.lattice import Branch
from dllm.verify.tree import Tree

S = TypeVar("S")
A = TypeVar("A")
B = TypeVar("B")

Step = tuple[float, int, str, S]  # weight given the parent (in (0, 1]), token, source, state behind
Expand = Callable[[S], Sequence[Step[S]]]  # state -> steps of distinct tokens, heaviest first


def heaviest_tree(
    root: int, expand: Expand[S], start: S, drafts: int, eos: Collection[int] = ()
) -> Tree:
    """The tree of the `drafts` heaviest nodes, added in that order; nothing behind a token of eos.

    Among equals the one that was reached first comes first, so every prefix of the order is the
    tree of a smaller budget.
    """
    tree, order = Tree.root(root), count()
    heap: list[tuple[float, int, float, int, Sequence[Step[S]], int]] = []

    def offer(above: float, parent: int, steps: Sequence[Step[S]], rank: int) -> None:
        if rank < len(steps):
            weight = above * steps[rank][0]
            heappush(heap, (-weight, next(order), above, parent, steps, rank))

    offer(1.0, 0, expand(start), 0)
    while heap and tree.drafts < drafts:
        weight, _, above, parent, steps, rank = heappop(heap)
        offer(above, parent, steps, rank + 1)  # the next of its siblings is no heavier
        _, token, source, state = steps[rank]
        node = tree.add(parent, token, -weight, source)
        if token not in eos:
            offer(-weight, node, expand(state), 0)
    return tree


@dataclass(frozen=True, slots=True)
class JointNode(Generic[A, B]):
    """A state of each of two views; first: None where the first knows nothing."""

    first: A | None
    second: B


def fuse(first: Expand[A], second: Expand[B]) -> Expand[A | JointNode[A, B]]:
    """What either of two views says, each below its own tokens; a state of the first stays one.

    A token of both is one step with both states behind it. They are taken as independent evidence,
    so its weight is 1 - (1 - a)(1 - b).
    """

    def expand(state: A | JointNode[A, B]) -> Sequence[Step[A | JointNode[A, B]]]:
        if not isinstance(state, JointNode):
            return first(state)
        ours = () if state.first is None else first(state.first)
        of_first = {step[1]: step for step in ours}
        steps: dict[int, Step[A | JointNode[A, B]]] = {**of_first}
        for weight, token, source, behind in second(state.second):
            if token in of_first:
                other, _, name, beside = of_first[token]
                either = 1 - (1 - other) * (1 - weight)
                steps[token] = (either, token, f"{name}+{source}", JointNode(beside, behind))
            else:
                steps[token] = (weight, token, source, JointNode(None, behind))
        return sorted(steps.values(), key=lambda step: -step[0])

    return expand


@dataclass(slots=True)
class BranchNode:
    """A node of the trie of branches."""

    weight: float = 0.0
    source: str = ""
    children: dict[int, BranchNode] = field(default_factory=dict)

    def steps(self) -> list[Step[BranchNode]]:
        """What follows, heaviest first."""
        found = [(node.weight, token, node.source, node) for token, node in self.children.items()]
        return sorted(found, key=lambda step: -step[0])


def trie(branches: Iterable[Branch]) -> BranchNode:
    """The trie of some branches. Where several agree the heaviest counts: they read one text."""
    root = BranchNode()
    for branch in branches:
        node = root
        for token, weight in zip(branch.tokens, branch.weights):
            if not weight > 0:
                break
            node = node.children.setdefault(token, BranchNode())
            if weight > node.weight:
                node.weight, node.source = weight, branch.source
    return root
