"""N-gram source: counts of what followed what, taken from the row's own text as it grows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from heapq import nlargest

import numpy as np

from dllm.checks import check_whole
from dllm.verify.draft.lattice import Branch
from dllm.verify.sources.memory import Array, Ids, SourceSession

NAME = "ngram"
FAINT = 0.01  # a branch less likely than this is not followed further


@dataclass(frozen=True)
class NGram:
    """An n-gram model of prompt and output, as a proxy and for branches.

    order: tokens of the longest counted sequence.  paths: branches; 0 leaves it a proxy.
    """

    order: int = 3
    paths: int = 4

    def __post_init__(self) -> None:
        check_whole("order", self.order, 2)
        check_whole("paths", self.paths, 0)

    def open(self) -> NGramCounts:
        return NGramCounts(self.order, self.paths)


@dataclass(slots=True)
class Followers:
    """What came behind one context, how often, and which was the commonest, lately."""

    counts: dict[int, int] = field(default_factory=dict)
    total: int = 0
    best: int = -1

    def add(self, token: int) -> None:
        count = self.counts[token] = self.counts.get(token, 0) + 1
        self.total += 1
        if count >= self.counts.get(self.best, 0):
            self.best = token


class NGramCounts(SourceSession):
    """An n-gram model smoothed as Witten and Bell did (1991, IEEE Trans. Inf. Theory 37(4)).

    p(v | h) = (c(hv) + T(h) p(v | shorter h)) / (c(h) + T(h)), T(h) the number of different tokens
    behind h. Below the shortest context all tokens seen, and one more, are as likely.
    """

    name = NAME

    def __init__(self, order: int, paths: int) -> None:
        self.order, self.paths = order, paths
        self.recent: tuple[int, ...] = ()
        self.contexts: dict[tuple[int, ...], Followers] = {(): Followers()}

    def extend(self, tokens: Sequence[int]) -> None:
        for token in tokens:
            for start in range(len(self.recent) + 1):
                known = self.contexts.get(self.recent[start:])
                if known is None:
                    known = self.contexts[self.recent[start:]] = Followers()
                known.add(token)
            self.recent = (*self.recent, token)[-(self.order - 1) :]

    def prob(self, context: tuple[int, ...], token: int) -> float:
        prob = 1 / (len(self.contexts[()].counts) + 1)
        for start in range(len(context), -1, -1):
            known = self.contexts.get(context[start:])
            if known is None:
                break
            kinds = len(known.counts)
            if kinds:
                prob = (known.counts.get(token, 0) + kinds * prob) / (known.total + kinds)
        return prob

    def logp(self, context: Sequence[int], candidates: Ids) -> Array:
        before = (*self.recent, *context)[-(self.order - 1) :]
        return np.log([self.prob(before, token) for token in candidates.tolist()])

    def pairs(self, left: Ids, right: Ids) -> Array:
        """See `SourceSession`: one pass of the host over all pairs, the arithmetic at once."""
        behind = right.tolist()
        base = [[self.prob((), v) for v in column] for column in behind]
        none, unknown = [0] * right.shape[-1], Followers()
        counts, kinds, totals = list[list[int]](), list[int](), list[int]()
        for column, candidates in zip(left.tolist(), behind):
            for token in column:
                known = self.contexts.get((token,), unknown)
                count = known.counts
                counts.append([count.get(v, 0) for v in candidates] if count else none)
                kinds.append(len(count) or 1)  # nothing known: the shorter context's alone
                totals.append(known.total)
        shape = (*left.shape, 1)
        escape, total = np.reshape(kinds, shape), np.reshape(totals, shape)
        seen = np.reshape(counts, (*left.shape, right.shape[-1]))
        shorter = np.reshape(base, (len(right), 1, right.shape[-1]))
        return np.asarray((seen + escape * shorter) / (total + escape))

    def branches(self, depth: int) -> list[Branch]:
        known = self.followers(self.recent)
        if known is None or not depth:
            return []
        counts, best = known.counts, known.best
        firsts = nlargest(self.paths, counts, key=lambda token: (counts[token], token == best))
        return [self.follow(token, depth) for token in firsts]

    def followers(self, before: tuple[int, ...]) -> Followers | None:
        """What came behind the longest context that is known, of at least one token."""
        for start in range(len(before)):
            known = self.contexts.get(before[start:])
            if known is not None:
                return known
        return None

    def follow(self, token: int, depth: int) -> Branch:
        """The branch that begins with `token` and goes on with the commonest each time."""
        before, tokens, weights, likely = self.recent, list[int](), list[float](), 1.0
        while True:
            tokens.append(token)
            weights.append(self.prob(before, token))
            likely *= weights[-1]
            before = (*before, token)[-(self.order - 1) :]
            known = self.followers(before)
            if known is None or len(tokens) == depth or likely < FAINT:
                return Branch(tuple(tokens), tuple(weights), NAME)
            token = known.best
