"""Drafters for tests: ones that say whatever a function of the context says."""

from __future__ import annotations

import numpy as np

from dllm.verify.draft.lattice import Lattice


class Scripted:
    """`say(context, depth)` gives the columns: a list of {token: probability}."""

    def __init__(self, say, eos=()):
        self.say, self.eos = say, eos

    def open(self, limits):
        return self

    def keep(self, rows):
        pass

    def propose(self, contexts, depths):
        return [
            columns(self.say(list(context), depth) if depth else [], self.eos)
            for context, depth in zip(contexts, depths, strict=True)
        ]


def columns(said, eos=()):
    """A lattice of what was said, in the order it was said, whatever it is."""
    width = max(map(len, said), default=0)
    tokens, logp = np.full((len(said), width), -1), np.full((len(said), width), -np.inf)
    for i, column in enumerate(said):
        for j, (token, prob) in enumerate(column.items() if isinstance(column, dict) else column):
            tokens[i, j], logp[i, j] = token, np.log(prob)
    return Lattice(tokens, logp, frozenset(eos))


def knowing(texts, vocab, spoil=3, seed=0):
    """Knows how the texts go on, but mixes wrong tokens into every `spoil`-th position."""

    def say(context, depth):
        text = next((t for t in texts if t[: len(context)] == context), None)
        if text is None:
            return []
        rng, out = np.random.default_rng([seed, len(context)]), []
        for i, token in enumerate(text[len(context) : len(context) + depth]):
            wrong = int(rng.integers(vocab))
            first, second = (wrong, token) if (i + seed) % spoil == spoil - 1 else (token, wrong)
            out.append({first: 0.6, second: 0.3} if first != second else {first: 0.9})
        return out

    return Scripted(say)


ADVERSARIES = {
    "empty": lambda context, depth: [],
    "constant": lambda context, depth: [{7: 1.0}] * depth,
    "end first": lambda context, depth: [{3: 0.9, 5: 0.1}] * depth,
    "outside": lambda context, depth: [{10**6: 0.5, -9: 0.3, 61: 0.1, 4: 0.1}] * depth,
    "nothing inside": lambda context, depth: [{10**6: 1.0}] * depth,
    "twice": lambda context, depth: [[(4, 0.5), (4, 0.3), (9, 0.2)]] * depth,
    "longer": lambda context, depth: [{4: 0.5, 9: 0.4}] * (depth + 40),
    "not a distribution": lambda context, depth: [[(4, 5.0), (9, float("nan")), (6, 0.0)]] * depth,
}
