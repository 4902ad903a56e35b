"""Rounds over small vocabularies: draft, search, accept, again, until enough tokens are out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

from dllm.verify.accept.rules import AcceptanceRule, AcceptedPath
from dllm.verify.draft.conditional import lattices
from dllm.verify.draft.lattice import Branch, Lattice
from dllm.verify.draft.search import Search
from dllm.verify.rng import Rng
from dllm.verify.sources.memory import Memory, SourceSession
from dllm.verify.tree import Tree
from tests.verify.exact import Table, chained, image, lattice_of

Text = tuple[int, ...]
Grow = Callable[[Text, Lattice, Rng], Tree]


class Copies(SourceSession):
    """A model-free source: its branch depends on the text alone."""

    name = "copies"

    def __init__(self, text: Text, vocab: int) -> None:
        rng = np.random.default_rng([len(text), *text])
        self.tokens = tuple(rng.integers(vocab, size=3).tolist())

    def branches(self, depth: int) -> list[Branch]:
        return [Branch(self.tokens[:depth], (0.6, 0.9, 0.9)[:depth], self.name)]


# what worlds differ in, by the names of `World`'s arguments
WORLDS = {
    "seed": st.integers(0, 10**6),
    "zeros": st.sampled_from((0.0, 0.4)),
    "width": st.integers(1, 3),
    "eos": st.sampled_from(((), (2,), (0, 2))),
    "branches": st.booleans(),
}


@dataclass
class World:
    """A target, a drafter and the end of the text.

    columns: how many positions the drafter predicts; width: how many tokens it keeps of each;
    sharp: exponent on its marginals, which are the target's own if `honest`, else random.
    markov: size of the random biases of its Markov head, some of which rule tokens out; 0: no head.
    """

    seed: int = 0
    vocab: int = 3
    length: int = 3
    columns: int = 2
    width: int = 3
    drafts: int = 4
    zeros: float = 0.0
    sharp: float = 1.0
    honest: bool = False
    eos: tuple[int, ...] = ()
    branches: bool = False
    markov: float = 0.0
    target: Table = field(init=False)

    def __post_init__(self) -> None:
        self.target = Table(self.seed, self.vocab, zeros=self.zeros)
        self.biases = biases(self.seed, self.vocab) * self.markov

    def lattice(self, text: Text) -> Lattice:
        if self.honest:
            columns = self.target.marginals(text, self.columns)
        else:
            rng = np.random.default_rng([self.seed, 99, len(text), *text])
            columns = rng.dirichlet(np.ones(self.vocab), self.columns)
        columns = columns**self.sharp
        if self.markov:
            logits = torch.from_numpy(columns).log()[None]
            last, depths = [root_of(text)], [self.columns]
            [lattice] = lattices(
                lambda prev: self.biases[prev], logits, last, depths, self.width, eos=self.eos
            )
            return lattice
        return lattice_of(columns / columns.sum(1, keepdims=True), self.width, self.eos)

    def grown(self, search: Search) -> Grow:
        """How a search of ours makes the tree behind a text."""

        def grow(text: Text, lattice: Lattice, rng: Rng) -> Tree:
            memory = Memory([Copies(text, self.vocab)] if self.branches else [])
            tree = search.grow(root_of(text), lattice, memory, self.drafts, rng)
            assert tree.drafts <= self.drafts
            return tree

        return grow

    def walk(self, rule: AcceptanceRule, text: Text, tree: Tree, rng: Rng) -> AcceptedPath:
        def scores(node: int, tokens: Sequence[int]):
            assert [tree.tokens[n] for n in tree.path(node)] == list(tokens)
            return self.target.scores(text + tuple(tokens))

        asked: list[list[int]] = []

        def ended(tokens: Sequence[int]) -> bool:
            asked.append(list(tokens))
            return self.done(text + tuple(tokens))

        walk = rule.walk(tree, scores, rng, ended)
        follows = [tree.tokens[node] for node in walk.nodes[1:]]
        assert follows == walk.tokens[:-1]
        assert asked[-1] == walk.tokens  # a caller may remember the last answer
        assert ended(walk.tokens) or tree.child(walk.nodes[-1], walk.tokens[-1]) is None
        return walk

    def done(self, text: Text) -> bool:
        return len(text) >= self.length or (len(text) > 0 and text[-1] in self.eos)

    def distribution(self, rule: AcceptanceRule, grow: Grow) -> dict[Text, float]:
        """The exact distribution of the text that rounds of drafting and accepting give."""

        def step(text: Text, rng: Rng) -> Text:
            tree = grow(text, self.lattice(text), rng)
            return text + tuple(self.walk(rule, text, tree, rng).tokens)

        return chained(step, (), self.done)

    def reusing(self, rule: AcceptanceRule, grow: Grow) -> dict[Text, float]:
        """The same with the columns that are left of a draft in the next rounds, while there are
        any."""

        def step(state: tuple[Text, int], rng: Rng) -> tuple[Text, int]:
            text, start = state
            lattice = self.lattice(text[:start]).shift(len(text) - start, root_of(text))
            if not len(lattice):
                start, lattice = len(text), self.lattice(text)
            tree = grow(text, lattice, rng)
            return text + tuple(self.walk(rule, text, tree, rng).tokens), start

        return image(chained(step, ((), 0), lambda s: self.done(s[0])), lambda s: s[0])

    def truth(self) -> dict[Text, float]:
        return self.target.text_distribution(self.length, self.eos)


def biases(seed: int, vocab: int, ruled_out: float = 0.2) -> Tensor:
    """[vocab, vocab] what a token adds to the logits behind it; -inf for a share of the pairs."""
    rng = np.random.default_rng([seed, 5])
    scores = rng.normal(size=(vocab, vocab))
    scores[rng.random(scores.shape) < ruled_out] = -np.inf
    scores[range(vocab), rng.integers(vocab, size=vocab)] = 1.0
    return torch.from_numpy(scores)


def root_of(text: Text) -> int:
    return text[-1] if text else 0
