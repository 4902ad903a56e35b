"""A random drafter with a Markov head: its distributions from the formula, its lattice, trees of
it.
"""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import settings
from hypothesis import strategies as st

from dllm.verify.draft.conditional import lattices
from dllm.verify.sources.memory import Memory
from tests.verify.drafts import Say, check_tree

ROOT, VOCAB = 3, 5


class Head:
    """A random chain over tokens 0..VOCAB-1 of `depth` columns, and its distributions from the
    formula.
    """

    def __init__(self, seed, depth=3, temperature=1.0, banned=(), size=2.0):
        rng = np.random.default_rng(seed)
        self.logits = 2 * rng.normal(size=(depth, VOCAB))
        self.biases = size * rng.normal(size=(VOCAB, VOCAB))
        self.depth, self.temperature, self.banned = depth, temperature, banned

    def distribution(self, path):
        """P(v | path), over the whole vocabulary."""
        scores = (self.logits[len(path)] + self.biases[(ROOT, *path)[-1]]) / self.temperature
        powers = np.exp(scores - scores.max())
        powers[list(self.banned)] = 0
        return powers / powers.sum()

    def conditional(self, path):
        return [(p, v) for v, p in enumerate(self.distribution(path))]

    def lattice(self, width=VOCAB, eos=()):
        [lattice] = lattices(
            lambda prev: torch.from_numpy(self.biases)[prev],
            torch.from_numpy(self.logits)[None],
            [ROOT],
            [self.depth],
            width,
            temperature=self.temperature,
            banned=self.banned,
            eos=eos,
        )
        return lattice

    def greedy(self):
        path = ()
        while len(path) < self.depth:
            path += (int(self.distribution(path).argmax()),)
        return path


heads = st.builds(
    Head,
    st.integers(0, 10**6),
    depth=st.integers(1, 4),
    temperature=st.sampled_from([0.7, 1.0, 2.0]),
    banned=st.sampled_from([(), (1,)]),
)


few = settings(max_examples=20, deadline=None)


def memory_of(table=None):
    memory = Memory([Say((), table)])
    memory.extend([ROOT])
    return memory


def grown(search, lattice, drafts, table=None):
    tree = search.grow(ROOT, lattice, memory_of(table), drafts, None)
    check_tree(tree, lattice.eos)
    return tree
