"""Acceptance rules: which tokens the target emits in a round, given the tree of drafts and the
target's own distributions.

The one theorem (emit, then follow): at a node the rule emits a token z whose distribution is the
target's distribution there, given all that was emitted before and given the tree. If z is a child
of the node the walk goes on from it, else the round ends. Whatever the tree, the text is then the
target's own: whether the walk goes on never changes what is emitted. So a rule is free in how it
makes z agree with the children, as long as its distribution is right; with deterministic children
drawing z alone is all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dllm.verify.rng import Rng
from dllm.verify.tree import Draw, Tree

# A rule may ask both of the following about drafts that it rejects then.
# (node, tokens emitted before it in this round) -> the target's processed logits [V] behind it
Scores = Callable[[int, Sequence[int]], Tensor]
# (node, tokens emitted before it in this round) -> the token emitted there
Emit = Callable[[int, Sequence[int]], int]
# (tokens emitted in this round) -> the row is finished; the last answer is about the walk's tokens
Ended = Callable[[Sequence[int]], bool]


@dataclass(frozen=True, slots=True)
class AcceptedPath:
    """What a round came to: the accepted nodes, root first, and the emitted tokens.

    Where nothing ended the row there is one token more than accepted drafts: the last is the
    target's own, its correction or, behind a leaf, its bonus.
    """

    nodes: list[int]
    tokens: list[int]


class AcceptanceRule:
    """An acceptance rule; a subclass says how a token is emitted at one node.

    lossless: the text's distribution is the target's own.
    """

    paper: ClassVar[str] = ""
    lossless: ClassVar[bool] = True

    def emit(self, scores: Tensor, draw: Draw | None, rng: Rng) -> int:
        """The next token, drawn by softmax(scores [V]); `draw`: the node's sampled children."""
        raise NotImplementedError

    def token(self, tree: Tree, node: int, scores: Tensor, rng: Rng) -> int:
        """The next token at `node` of the tree, whose logits are scores [V]."""
        return self.emit(scores, tree.draws.get(node), rng)

    def walk(self, tree: Tree, scores: Scores, rng: Rng, ended: Ended) -> AcceptedPath:
        """Emit and follow from the root until a token is no child, or ends the row."""
        return go_on(AcceptedPath([0], []), tree, self.emitter(tree, scores, rng), ended)

    def emitter(self, tree: Tree, scores: Scores, rng: Rng) -> Emit:
        """This rule's choice at a node, as `go_on` asks for it."""
        return lambda node, tokens: self.token(tree, node, scores(node, tokens), rng)


def go_on(walk: AcceptedPath, tree: Tree, emit: Emit, ended: Ended) -> AcceptedPath:
    """Emit and follow from the last accepted node on, where nothing is emitted yet."""
    while True:
        walk.tokens.append(emit(walk.nodes[-1], walk.tokens))
        if not follow(walk, tree, ended):
            return walk


def follow(walk: AcceptedPath, tree: Tree, ended: Ended) -> bool:
    """Accept the child that the token just emitted names; false where the round is over."""
    child = tree.child(walk.nodes[-1], walk.tokens[-1])
    if ended(walk.tokens) or child is None:
        return False
    walk.nodes.append(child)
    return True


@dataclass(frozen=True)
class GreedyAcceptance(AcceptanceRule):
    """The most likely token, the lowest id among equals: equal to greedy decoding for any tree."""

    def emit(self, scores: Tensor, draw: Draw | None, rng: Rng) -> int:
        return int(scores.argmax())


@dataclass(frozen=True)
class Match(AcceptanceRule):
    """Draw from the target and look whether a child has that token.

    One draw per emitted token, as in plain sampling: with the same generator it emits the very
    tokens that the target alone would. Right for every tree that does not depend on those draws.
    """

    def emit(self, scores: Tensor, draw: Draw | None, rng: Rng) -> int:
        return rng.choice(torch.softmax(scores, -1))
