"""The N heaviest nodes of a tree that is given by what may follow what.

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


def heaviest(
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
class Both(Generic[A, B]):
    """A state of each of two views; first: None where the first knows nothing."""

    first: A | None
    second: B


def fuse(first: Expand[A], second: Expand[B]) -> Expand[A | Both[A, B]]:
    """What either of two views says, each below its own tokens; a state of the first stays one.

    A token of both is one step with both below it. They are taken as independent evidence, so its
    weight is 1 - (1 - a)(1 - b).
    """

    def expand(state: A | Both[A, B]) -> Sequence[Step[A | Both[A, B]]]:
        if not isinstance(state, Both):
            return first(state)
        ours = () if state.first is None else first(state.first)
        known = {step[1]: step for step in ours}
        steps: dict[int, Step[A | Both[A, B]]] = {**known}
        for weight, token, source, below in second(state.second):
            if token in known:
                other, _, name, beside = known[token]
                either = 1 - (1 - other) * (1 - weight)
                steps[token] = (either, token, f"{name}+{source}", Both(beside, below))
            else:
                steps[token] = (weight, token, source, Both(None, below))
        return sorted(steps.values(), key=lambda step: -step[0])

    return expand


@dataclass(slots=True)
class Twig:
    """A node of the trie of branches."""

    weight: float = 0.0
    source: str = ""
    below: dict[int, Twig] = field(default_factory=dict)


def plant(branches: Iterable[Branch]) -> Twig:
    """The trie of some branches. Where several agree the heaviest counts: they read one text."""
    root = Twig()
    for branch in branches:
        twig = root
        for token, weight in zip(branch.tokens, branch.weights):
            if not weight > 0:
                break
            twig = twig.below.setdefault(token, Twig())
            if weight > twig.weight:
                twig.weight, twig.source = weight, branch.source
    return root


def climb(twig: Twig) -> list[Step[Twig]]:
    """What follows in a trie."""
    steps = [(below.weight, token, below.source, below) for token, below in twig.below.items()]
    return sorted(steps, key=lambda step: -step[0])
