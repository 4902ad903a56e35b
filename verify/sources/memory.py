"""Sources of drafts without a model: continuations and conditional probabilities from text.

A `SourceSession` reads one row's tokens as they come, and answers from them: which continuations it
has (`branches`) and how likely a token is behind others (`logp`, `pairs`: a proxy, which couples a
lattice's columns). `Memory` holds the sources of one row, and calibrates their weights by what
came.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dllm.verify.draft.lattice import Branch

Array = NDArray[np.float64]
Ids = NDArray[np.int64]


class SourceSession(Protocol):
    """One row's view of a source; a base, for one that learns nothing and is no proxy.

    top: how many of the target's most likely tokens behind a node `learn` wants; 0: none.
    """

    name: str
    top: int = 0

    def extend(self, tokens: Sequence[int]) -> None:
        """Tokens that were committed: first the whole prompt, then what each round emits."""
        ...

    def learn(self, tokens: Sequence[int], top: Ids) -> None:
        """What the target finds most likely behind each verified token: top [n, k], best first."""
        return

    def branches(self, depth: int) -> list[Branch]:
        """Continuations of the committed text, of at most `depth` tokens."""
        ...

    def logp(self, context: Sequence[int], candidates: Ids) -> Array | None:
        """ln g(candidate | context) [M], finite; `context` are tokens behind the committed text.

        None: this source is no proxy.
        """
        return None

    def pairs(self, left: Ids, right: Ids) -> Array | None:
        """g(v|u) [K, M, M] of candidates u of left [K, M] and v of right [K, M]; -1 is no token.

        None: this source is no proxy.
        """
        return None


class Source(Protocol):
    """A model-free drafter: a frozen dataclass of options; `open` begins a row."""

    def open(self) -> SourceSession: ...


class Rate:
    """How often something comes true: an average that forgets, and begins with an estimate."""

    __slots__ = ("hits", "seen")

    def __init__(self) -> None:
        self.hits = self.seen = 0.0

    def add(self, hit: bool, decay: float) -> None:
        self.hits = decay * self.hits + hit
        self.seen = decay * self.seen + 1

    def given(self, prior: float, strength: float) -> float:
        """The rate, where `prior` counts as much as `strength` observations."""
        return (self.hits + strength * prior) / (self.seen + strength)


Rates = defaultdict[tuple[str, int], Rate]  # (source, tenth of the raw weight) -> what came true


class Memory:
    """The sources of one row behind one face.

    Weights of branches are calibrated by source and tenth of the raw weight: what was said before
    is compared with the tokens that came, an average that forgets with `decay`; the raw weight
    counts as much as `strength` comparisons. rates: what other texts have shown already; it is
    learned from, too.
    """

    bins = 10

    def __init__(
        self,
        sources: Sequence[SourceSession] = (),
        *,
        rates: Rates | None = None,
        decay: float = 0.98,
        strength: float = 4.0,
    ) -> None:
        self.sources = tuple(sources)
        self.decay, self.strength = decay, strength
        self.rates = defaultdict(Rate) if rates is None else rates
        self.said: list[Branch] = []

    @property
    def top(self) -> int:
        """How many of the target's most likely tokens behind a node `learn` wants; 0: none."""
        return max((source.top for source in self.sources), default=0)

    def extend(self, tokens: Sequence[int]) -> None:
        """Tokens that were committed; branches said before are judged by them."""
        self.judge(tokens)
        for source in self.sources:
            source.extend(tokens)

    def judge(self, tokens: Sequence[int]) -> None:
        """Compare what was said with what came. Nothing is said of what lies behind a miss."""
        judged: set[tuple[str, tuple[int, ...]]] = set()
        for branch in self.said:
            for i, (said, weight, came) in enumerate(zip(branch.tokens, branch.weights, tokens)):
                key = branch.source, branch.tokens[: i + 1]
                if key not in judged:
                    judged.add(key)
                    self.rates[self.bin(branch.source, weight)].add(said == came, self.decay)
                if said != came:
                    break
        self.said = []

    def bin(self, source: str, weight: float) -> tuple[str, int]:
        return source, min(int(weight * self.bins), self.bins - 1)

    def calibrated(self, source: str, weight: float) -> float:
        rate = self.rates.get(self.bin(source, weight))
        return weight if rate is None else rate.given(weight, self.strength)

    def learn(self, tokens: Sequence[int], top: Ids) -> None:
        for source in self.sources:
            source.learn(tokens, top)

    def branches(self, depth: int) -> list[Branch]:
        """Continuations of at most `depth` tokens, with calibrated weights."""
        self.said = [branch for source in self.sources for branch in source.branches(depth)]
        return [
            Branch(
                branch.tokens,
                tuple(self.calibrated(branch.source, weight) for weight in branch.weights),
                branch.source,
            )
            for branch in self.said
        ]

    def logp(self, context: Sequence[int], candidates: Ids) -> Array:
        """ln g(candidate | context) [M]: the proxies' mean; without one all are as likely."""
        said = [source.logp(context, candidates) for source in self.sources]
        known = [np.exp(logp) for logp in said if logp is not None]
        if not known:
            return np.full(len(candidates), -np.log(len(candidates)))
        return np.asarray(np.log(sum(known) / len(known)))

    def pairs(self, left: Ids, right: Ids) -> Array:
        """g(v|u) [K, M, M] of neighbouring columns: the proxies' mean; 1 without one."""
        said = [source.pairs(left, right) for source in self.sources]
        known = [pairs for pairs in said if pairs is not None]
        if not known:
            return np.ones((*left.shape, right.shape[-1]))
        return np.asarray(sum(known) / len(known))
