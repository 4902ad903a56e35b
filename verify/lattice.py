"""What one pass of a drafter says: for each of the next K positions, its most likely tokens.

Marginals only: how tokens of neighbouring positions go together is the search's business. Numpy,
since searching happens on the host and a lattice is small.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dllm.verify.tree import Law


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
    """

    tokens: NDArray[np.int64]
    logp: NDArray[np.float64]
    eos: frozenset[int] = frozenset()
    branches: tuple[Branch, ...] = ()

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

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def mass(self) -> NDArray[np.float64]:
        """[K] probability that the kept tokens of each column have together."""
        return np.asarray(np.exp(self.logp).sum(1))

    def law(self, depth: int) -> Law:
        """Column `depth` as a law: cut to the kept tokens and renormalised, ready to draw from."""
        keep = self.tokens[depth] >= 0
        probs = np.exp(self.logp[depth][keep])
        return Law(self.tokens[depth][keep], probs / probs.sum())

    def first_end(self) -> int:
        """The first position whose most likely token is an end; the number of columns if none."""
        ends = np.isin(self.tokens[:, :1], list(self.eos)).any(1)
        return int(ends.argmax()) if ends.any() else len(self)

    def checked(self, vocab_size: int, depth: int) -> Lattice:
        """The first `depth` columns, without ids outside [0, vocab_size) and repetitions.

        A column that is left empty ends the lattice.
        """
        tokens, logp = self.tokens[:depth], self.logp[:depth]
        bad = (tokens >= vocab_size) | (tokens < -1) | (np.isnan(logp))
        again = np.sort(tokens, 1)
        if (again[:, 1:] == again[:, :-1])[again[:, 1:] >= 0].any():
            for column, out in zip(tokens, bad, strict=True):
                first = np.unique(column, return_index=True)[1]
                out |= ~np.isin(np.arange(len(column)), first)
        if bad.any():
            tokens, logp = np.where(bad, -1, tokens), np.where(bad, -np.inf, logp)
        full = (logp > -np.inf).any(1)
        end = len(tokens) if full.all() else int(full.argmin())
        return Lattice(tokens[:end], logp[:end], self.eos, self.branches)

    def shift(self, count: int) -> Lattice:
        """Without the first `count` columns and branches: what is left once those are committed."""
        return Lattice(self.tokens[count:], self.logp[count:], self.eos)

    def prune(self, mass: float = 1.0, width: int | None = None) -> Lattice:
        """Each column cut to the fewest tokens that have `mass`; end tokens are always kept.

        At most `width` others stay (DiffuSpec, arXiv 2510.02358, section 3.2).
        """
        before = np.cumsum(np.exp(self.logp), 1) - np.exp(self.logp)
        keep = before < mass
        if width is not None:
            keep[:, width:] = False
        keep |= np.isin(self.tokens, list(self.eos))
        tokens = np.where(keep, self.tokens, -1)
        logp = np.where(keep, self.logp, -np.inf)
        return Lattice(tokens, logp, self.eos, self.branches)
