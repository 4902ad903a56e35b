"""Which tokens the target emits in a round, given the tree of drafts and the target's own laws.

The one theorem (emit, then follow): at a node the rule emits a token z whose law is the target's
law there, given all that was emitted before and given the tree. If z is a child of the node the
walk goes on from it, else the round ends. Whatever the tree, the text is then the target's own:
whether the walk goes on never changes what is emitted. So a rule is free in how it makes z agree
with the children, as long as its law is right; with deterministic children drawing z alone is all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dllm.verify.rng import Rng
from dllm.verify.tree import Draw, Tree

# (node, tokens emitted before it in this round) -> the target's processed logits [V] behind it
Scores = Callable[[int, Sequence[int]], Tensor]
Ended = Callable[[Sequence[int]], bool]  # (tokens emitted in this round) -> the row is finished


@dataclass(frozen=True, slots=True)
class Walk:
    """What a round came to: the accepted nodes, root first, and the emitted tokens.

    Where nothing ended the row there is one token more than accepted drafts: the last is the
    target's own, its correction or, behind a leaf, its bonus.
    """

    nodes: list[int]
    tokens: list[int]


def follow(tree: Tree, emit: Callable[[int, Sequence[int]], int], ended: Ended) -> Walk:
    """Emit and follow from the root until a token is no child, or ends the row.

    emit(node, tokens emitted before it in this round): the next token.
    """
    node, nodes, tokens = 0, [0], list[int]()
    while True:
        tokens.append(emit(node, tokens))
        child = tree.child(node, tokens[-1])
        if ended(tokens) or child is None:
            return Walk(nodes, tokens)
        nodes.append(node := child)


class Rule:
    """An acceptance rule; a subclass says how a token is emitted at one node."""

    lossless = True

    def emit(self, scores: Tensor, draw: Draw | None, rng: Rng) -> int:
        """The next token, of law softmax(scores [V]); `draw`: the node's sampled children."""
        raise NotImplementedError

    def walk(self, tree: Tree, scores: Scores, rng: Rng, ended: Ended) -> Walk:
        """One round: see `follow`."""

        def emit(node: int, tokens: Sequence[int]) -> int:
            return self.emit(scores(node, tokens), tree.draws.get(node), rng)

        return follow(tree, emit, ended)


@dataclass(frozen=True)
class Greedy(Rule):
    """The most likely token, the lowest id among equals: equal to greedy decoding for any tree."""

    def emit(self, scores: Tensor, draw: Draw | None, rng: Rng) -> int:
        return int(scores.argmax())


@dataclass(frozen=True)
class Match(Rule):
    """Draw from the target and look whether a child has that token.

    One draw per emitted token, as in plain sampling: with the same generator it emits the very
    tokens that the target alone would. Right for every tree that does not depend on those draws.
    """

    def emit(self, scores: Tensor, draw: Draw | None, rng: Rng) -> int:
        return rng.choice(torch.softmax(scores, -1))
