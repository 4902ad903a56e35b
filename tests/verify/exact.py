"""Exact distributions of random programs: every choice and coin is enumerated, nothing is
estimated.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from dllm.verify.draft.lattice import Lattice
from dllm.verify.rng import Rng

T = TypeVar("T", bound=Hashable)
S = TypeVar("S", bound=Hashable)


class ExactRng:
    """Follows a script of outcomes; behind its end it takes the first possible one and notes the
    scripts that lead to the others."""

    def __init__(self, script: Sequence[int]) -> None:
        self.taken: list[int] = []
        self.script = script
        self.mass = 1.0
        self.others: list[list[int]] = []

    def outcome(self, probs: Sequence[float]) -> int:
        assert min(probs) >= 0
        assert abs(sum(probs) - 1) < 1e-9
        step = len(self.taken)
        if step < len(self.script):
            index = self.script[step]
        else:
            index, *rest = [i for i, prob in enumerate(probs) if prob > 0]
            self.others += [[*self.taken, other] for other in rest]
        self.taken.append(index)
        self.mass *= probs[index]
        return index

    def choice(self, probs: Tensor) -> int:
        assert probs.dtype == torch.float64
        return self.outcome(probs.tolist())

    def flip(self, prob: float) -> bool:
        return self.outcome([1 - prob, prob]) == 1


def distribution_of(program: Callable[[Rng], T]) -> dict[T, float]:
    """The distribution of what `program` returns, which draws from its argument alone."""
    distribution: dict[T, float] = defaultdict(float)
    scripts: list[list[int]] = [[]]
    while scripts:
        rng = ExactRng(scripts.pop())
        distribution[program(rng)] += rng.mass
        scripts += rng.others
    assert abs(sum(distribution.values()) - 1) < 1e-12
    return dict(distribution)


def chained(step: Callable[[S, Rng], S], start: S, done: Callable[[S], bool]) -> dict[S, float]:
    """The distribution of the first state that is done, of the Markov chain that `step` makes."""
    known: dict[S, dict[S, float]] = {}
    final: dict[S, float] = defaultdict(float)
    now = {start: 1.0}
    while now:
        after: dict[S, float] = defaultdict(float)
        for state, mass in now.items():
            if done(state):
                final[state] += mass
                continue
            if state not in known:
                known[state] = distribution_of(lambda rng: step(state, rng))  # noqa: B023
            for other, prob in known[state].items():
                after[other] += mass * prob
        now = after
    return dict(final)


def tv(a: Mapping[T, float], b: Mapping[T, float]) -> float:
    """Total-variation distance."""
    return sum(abs(a.get(x, 0.0) - b.get(x, 0.0)) for x in a.keys() | b.keys()) / 2


def image(distribution: Mapping[S, float], of: Callable[[S], T]) -> dict[T, float]:
    """The distribution of a function of what `distribution` is the distribution of."""
    out: dict[T, float] = defaultdict(float)
    for x, prob in distribution.items():
        out[of(x)] += prob
    return dict(out)


class Table:
    """A target over tokens 0..vocab-1: a random distribution p(v | text) for every text, made when
    asked.

    sharp: the larger, the nearer to greedy.  zeros: share of tokens that are impossible.
    """

    def __init__(self, seed: int, vocab: int, sharp: float = 1.5, zeros: float = 0.0) -> None:
        self.seed, self.vocab, self.sharp, self.zeros = seed, vocab, sharp, zeros
        self.known: dict[tuple[int, ...], Tensor] = {}

    def scores(self, text: Iterable[int]) -> Tensor:
        """Logits [vocab] fp64 behind a text."""
        text = tuple(text)
        if text not in self.known:
            rng = np.random.default_rng([self.seed, len(text), *text])
            scores = self.sharp * rng.normal(size=self.vocab)
            hidden = rng.random(self.vocab) < self.zeros
            hidden[rng.integers(self.vocab)] = False
            self.known[text] = torch.from_numpy(np.where(hidden, -np.inf, scores))
        return self.known[text]

    def probs(self, text: Iterable[int]) -> list[float]:
        return torch.softmax(self.scores(text), -1).tolist()

    def text_distribution(
        self, length: int, eos: Sequence[int] = ()
    ) -> dict[tuple[int, ...], float]:
        """The distribution of its own texts: `length` tokens, fewer where one of `eos` came."""
        distribution = {(): 1.0}
        for _ in range(length):
            longer: dict[tuple[int, ...], float] = {}
            for text, mass in distribution.items():
                if text and text[-1] in eos:
                    longer[text] = mass
                    continue
                for token, prob in enumerate(self.probs(text)):
                    longer[(*text, token)] = mass * prob
            distribution = longer
        return distribution

    def marginals(self, text: tuple[int, ...], depth: int) -> np.ndarray:
        """[depth, vocab]: the true marginal of each of the next tokens."""
        columns, distribution = np.zeros((depth, self.vocab)), {text: 1.0}
        for column in columns:
            distribution = {
                (*x, v): mass * p
                for x, mass in distribution.items()
                for v, p in enumerate(self.probs(x))
            }
            for x, mass in distribution.items():
                column[x[-1]] += mass
        return columns


def lattice_of(columns: np.ndarray, width: int, eos: Iterable[int] = ()) -> Lattice:
    """Columns of probabilities [K, V] as a lattice that keeps `width` tokens of each."""
    return Lattice.of(torch.from_numpy(columns).log().double(), width, eos=frozenset(eos))
