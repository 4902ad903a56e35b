"""Lattice: what one pass of a drafter says, the most likely tokens of each of the next K positions.

Marginals, and with a Markov head (conditional.py) what a token is worth behind another one; else
how tokens of neighbouring positions go together is the search's business. Numpy, since searching
happens on the host and a lattice is small.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dllm.verify.tree import Distribution

TINY = 1e-100  # in place of a sum of 0, where the other factor is 0 too


@dataclass(frozen=True, slots=True)
class Branch:
    """A continuation from a model-free source.

    tokens: what comes next.  weights: estimated probability of each, given that those before it
    were right.  source: who says so.
    """

    tokens: tuple[int, ...]
    weights: tuple[float, ...]
    source: str


@dataclass(frozen=True, slots=True)
class Lattice:
    """Columns of candidate tokens, one per draft position, in the target's ids.

    tokens [K, M] int64: distinct within a column, most likely first, -1 where there are fewer.
    logp   [K, M] float64: ln of the drafter's marginal probability, -inf at -1.
    eos: tokens behind which nothing is drafted.
    branches: whole continuations that do not fit into columns.
    pairs [K, M, M] float64 or None: ln of the probability of candidate v of a column behind
    candidate u of the column before it, u in rows; those of column 0 mean nothing, its distribution
    is logp[0]. With pairs the drafter's distribution is that Markov chain; logp is then what
    `chained` says.
    """

    tokens: NDArray[np.int64]
    logp: NDArray[np.float64]
    eos: frozenset[int] = frozenset()
    branches: tuple[Branch, ...] = ()
    pairs: NDArray[np.float64] | None = None

    @classmethod
    def empty(cls, eos: Collection[int] = ()) -> Lattice:
        """A lattice of no columns: a drafter that has nothing to say."""
        return cls(np.zeros((0, 0), np.int64), np.zeros((0, 0)), frozenset(eos))

    @classmethod
    def of(
        cls,
        logits: Tensor,
        width: int,
        *,
        temperature: float = 1.0,
        banned: Sequence[int] = (),
        eos: Collection[int] = (),
    ) -> Lattice:
        """From logits [K, V] of K positions, keeping `width` tokens each.

        banned: ids never proposed (the mask token).
        """
        logits = logits.float() / temperature
        if banned:
            logits[:, list(banned)] = -torch.inf
        top, ids = logits.log_softmax(-1).topk(min(width, logits.shape[-1]), -1)
        ids = ids.masked_fill(top == -torch.inf, -1)
        return cls(ids.cpu().numpy(), top.double().cpu().numpy(), frozenset(eos))

    @classmethod
    def chained(
        cls,
        tokens: NDArray[np.int64],
        first: NDArray[np.float64],
        pairs: NDArray[np.float64],
        eos: Collection[int] = (),
        branches: tuple[Branch, ...] = (),
    ) -> Lattice:
        """The Markov chain of a first column of log-distribution first [M] and pairs [K, M, M].

        logp of a later column: its distribution behind the candidates before it, as if there were
        no others.
        """
        logp = np.full(tokens.shape, -np.inf)
        logp[:1] = first
        for i in range(1, len(tokens)):
            before = np.exp(logp[i - 1])
            with np.errstate(divide="ignore"):
                logp[i] = np.log(before @ np.exp(pairs[i]) / max(before.sum(), TINY))
        order = np.argsort(-logp, 1, kind="stable")
        pairs = np.take_along_axis(pairs, order[:, None], 2)
        pairs[1:] = np.take_along_axis(pairs[1:], order[:-1, :, None], 1)
        tokens, logp = (np.take_along_axis(each, order, 1) for each in (tokens, logp))
        return cls(tokens, logp, frozenset(eos), branches, pairs)

    def __len__(self) -> int:
        return len(self.tokens)

    def distribution(self, depth: int) -> Distribution:
        """Column `depth`, cut to the kept tokens and renormalised: ready to draw from."""
        keep = self.tokens[depth] >= 0
        probs = np.exp(self.logp[depth][keep])
        return Distribution(self.tokens[depth][keep], probs / probs.sum())

    def slot(self, depth: int, token: int | None) -> int | None:
        """Where a token stands in a column, if it is a candidate."""
        found = np.flatnonzero(self.tokens[depth] == token)
        return int(found[0]) if len(found) else None

    def distribution_behind(self, depth: int, before: int) -> Distribution:
        """The same behind the token `before` of the column before it, the likeliest token first.

        Empty where none may follow. For a lattice with pairs and a candidate `before`.
        """
        assert self.pairs is not None
        probs = np.exp(self.pairs[depth, self.slot(depth - 1, before)])
        order = np.argsort(-probs, kind="stable")[: np.count_nonzero(probs)]
        return Distribution(self.tokens[depth][order], probs[order] / max(probs.sum(), TINY))

    def given(self, path: Sequence[int]) -> NDArray[np.float64]:
        """[M] ln of the drafter's probabilities behind `path`, candidates of the columns before."""
        if self.pairs is None or not path:
            return np.asarray(self.logp[len(path)])
        return np.asarray(self.pairs[len(path), path[-1]])

    def worth(self, path: Sequence[int]) -> float:
        """ln of the drafter's probability of `path`, candidates of the first columns."""
        return float(sum(self.given(path[:i])[slot] for i, slot in enumerate(path)))

    def path(self) -> NDArray[np.int64]:
        """[K] the candidates of the greedy path: of each column the likeliest.

        With pairs: the likeliest behind the one chosen before it.
        """
        slots = np.zeros(len(self), np.int64)
        if self.pairs is not None:
            for i in range(1, len(self)):
                slots[i] = self.pairs[i, slots[i - 1]].argmax()
        return slots

    def first_end(self) -> int:
        """The greedy path's first position with an end token; the number of columns if none."""
        likeliest = self.tokens[np.arange(len(self)), self.path()]
        ends = np.isin(likeliest, list(self.eos))
        return int(ends.argmax()) if ends.any() else len(self)

    def cut(self, end: int) -> Lattice:
        """The first `end` columns."""
        pairs = None if self.pairs is None else self.pairs[:end]
        return Lattice(self.tokens[:end], self.logp[:end], self.eos, self.branches, pairs)

    def narrow(self, width: int) -> Lattice:
        """The first `width` candidates of each column."""
        pairs = None if self.pairs is None else self.pairs[:, :width, :width]
        tokens, logp = self.tokens[:, :width], self.logp[:, :width]
        return Lattice(tokens, logp, self.eos, self.branches, pairs)

    def without(self, out: NDArray[np.bool_]) -> Lattice:
        """Without the candidates where out [K, M]."""
        tokens, logp = np.where(out, -1, self.tokens), np.where(out, -np.inf, self.logp)
        pairs = None if self.pairs is None else np.where(out[:, None], -np.inf, self.pairs)
        return Lattice(tokens, logp, self.eos, self.branches, pairs)

    def checked(self, vocab_size: int, depth: int) -> Lattice:
        """The first `depth` columns, without ids outside [0, vocab_size) and repetitions.

        A column that is left empty ends the lattice.
        """
        lattice = self.cut(depth)
        tokens, logp = lattice.tokens, lattice.logp
        bad = (tokens >= vocab_size) | (tokens < -1) | (np.isnan(logp))
        again = np.sort(tokens, 1)
        if (again[:, 1:] == again[:, :-1])[again[:, 1:] >= 0].any():
            for column, out in zip(tokens, bad, strict=True):
                first = np.unique(column, return_index=True)[1]
                out |= ~np.isin(np.arange(len(column)), first)
        if bad.any():
            lattice = lattice.without(bad)
        if lattice.pairs is not None:
            none = np.isnan(lattice.pairs) | (lattice.tokens < 0)[:, None]
            pairs = np.where(none, -np.inf, np.minimum(lattice.pairs, 0))
            lattice = replace(lattice, pairs=pairs)
        full = (lattice.logp > -np.inf).any(1)
        return lattice if full.all() else lattice.cut(int(full.argmin()))

    def shift(self, count: int, last: int | None = None) -> Lattice:
        """Without the first `count` columns and branches: what is left once those are committed.

        last: the token that came in the last of them. With pairs the next column is the one behind
        it; behind a token that is no candidate it is what `chained` says, a distribution like any
        other.
        """
        tokens, logp = self.tokens[count:], self.logp[count:]
        if self.pairs is None or not len(tokens):
            return Lattice(tokens, logp, self.eos)
        row = self.slot(count - 1, last) if count else None
        first = logp[0] if row is None else self.pairs[count, row]
        return Lattice.chained(tokens, first, self.pairs[count:], self.eos)

    def prune(self, mass: float = 1.0, width: int | None = None) -> Lattice:
        """Each column cut to the fewest tokens that have `mass`; end tokens are always kept.

        At most `width` others stay (DiffuSpec, arXiv 2510.02358, section 3.2).
        """
        before = np.cumsum(np.exp(self.logp), 1) - np.exp(self.logp)
        keep = before < mass
        if width is not None:
            keep[:, width:] = False
        keep |= np.isin(self.tokens, list(self.eos))
        return self.without(~keep)
