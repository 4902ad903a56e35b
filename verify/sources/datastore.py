"""Retrieval: continuations of the text's end in a stored collection of texts (REST, arXiv
2311.08252).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from dllm.checks import check_whole
from dllm.errors import DllmError
from dllm.files import replacing
from dllm.tensors import read_tensors
from dllm.verify.draft.lattice import Branch
from dllm.verify.sources.memory import Array, Ids, SourceSession

NAME = "datastore"
FORMAT = "dllm datastore 1"
ROUNDS = 4
REACH = 2**ROUNDS  # tokens by which places are sorted: no longer match is found
END = -1  # behind each text


@dataclass(frozen=True)
class Datastore:
    """Continuations of the longest end of the text that occurs in the file `path`.

    least: tokens of the shortest match.  samples: occurrences that are looked at, spread over all
    of them; a token's weight is its share of those that agree so far, and of one that does not. 0
    leaves it a proxy: how often a token stands behind another in the file.
    """

    path: str
    least: int = 2
    samples: int = 16
    table: SuffixTable = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_whole("least", self.least, 1)
        check_whole("samples", self.samples, 0)
        object.__setattr__(self, "table", SuffixTable.load(self.path))

    @staticmethod
    def build(sequences: Iterable[Sequence[int]], path: str | Path) -> None:
        """Write the file that `path` names; sequences of tokens, which no match crosses."""
        texts = [list(text) for text in sequences]
        if not any(texts):
            raise DllmError("datastore: expected texts of at least one token, found none")
        largest = np.iinfo(np.int32).max
        for token in (token for text in texts for token in text):
            if not 0 <= token <= largest:
                raise DllmError(f"datastore: token {token}: expected a number from 0 to {largest}")
        tokens = np.array([token for text in texts for token in (*text, END)], np.int32)
        order = sorted_places(tokens)
        with replacing(path) as temp:
            save_file({"tokens": tokens, "order": order}, temp, {"format": FORMAT})

    def open(self) -> Lookup:
        return Lookup(self.table, self.least, self.samples)


def pair(before: Ids, after: Ids) -> Ids:
    """Two tokens as one number."""
    return (before << 32) | after


def sorted_places(tokens: NDArray[np.int32]) -> NDArray[np.int32]:
    """All places, by the REACH tokens from there on (prefix doubling)."""
    rank = np.unique(tokens, return_inverse=True)[1].astype(np.int64) + 1
    for step in (2**i for i in range(ROUNDS)):
        later = np.append(rank[step:], np.zeros(min(step, len(rank)), np.int64))
        rank = np.unique(rank * (len(rank) + 1) + later, return_inverse=True)[1] + 1
    return np.argsort(rank, kind="stable").astype(np.int32)


@dataclass(frozen=True)
class SuffixTable:
    """tokens [n]: all texts, END behind each.  order [n]: places, sorted by what begins there."""

    tokens: NDArray[np.int32]
    order: NDArray[np.int32]

    @classmethod
    def load(cls, path: str) -> SuffixTable:
        """Read a file that `Datastore.build` wrote; ValueError if it is not one."""
        names = ("tokens", "order")
        found, _ = read_tensors(
            path, names, format=FORMAT, framework="numpy", called=f"path={path!r}"
        )
        tokens, order = found["tokens"], found["order"]
        if (
            tokens.ndim != 1
            or {tokens.dtype, order.dtype} != {np.dtype(np.int32)}
            or tokens[-1:].tolist() != [END]
            or tokens.min() < END
            or order.shape != tokens.shape
            or not np.array_equal(np.sort(order), np.arange(len(tokens)))
        ):
            raise ValueError(f"path={path!r}: expected one place for each of its tokens")
        return cls(tokens, order)

    @cached_property
    def neighbours(self) -> tuple[Ids, Ids]:
        """Every pair of neighbours as one number, sorted, and how often it occurs."""
        before, after = self.tokens[:-1].astype(np.int64), self.tokens[1:].astype(np.int64)
        inside = (before != END) & (after != END)
        return np.unique(pair(before, after)[inside], return_counts=True)

    @cached_property
    def counts(self) -> Ids:
        """[largest token + 2] how often a token has a neighbour behind it; the last: an unknown."""
        codes, times = self.neighbours
        size = int(self.tokens.max()) + 2
        return np.bincount(codes >> 32, times, size).astype(np.int64)

    def shares(self, before: Ids, after: Ids) -> Array:
        """How often `after` stands behind `before`, of all that does; 0 where nothing does."""
        codes, times = self.neighbours
        wanted = pair(before, after)
        if not len(codes):
            return np.zeros(wanted.shape)
        place = np.minimum(np.searchsorted(codes, wanted), len(codes) - 1)
        found = np.where(codes[place] == wanted, times[place], 0)
        known = (before >= 0) & (before < len(self.counts))
        return np.asarray(found / np.maximum(self.counts[np.where(known, before, -1)], 1))

    def words(self, place: int, count: int) -> list[int]:
        """The tokens that begin at a place."""
        found: list[int] = self.tokens[place : place + count].tolist()
        return found

    def matches(self, words: Sequence[int]) -> range:
        """Where in `order` the places are at which these (at most REACH) tokens begin."""
        words, count = list(words), len(words)

        def key(place: int) -> list[int]:
            return self.words(place, count)

        low = bisect_left(self.order, words, key=key)
        if low == len(self.order) or key(self.order[low]) != words:
            return range(0)
        return range(low, bisect_right(self.order, words, low, key=key))

    def longest(self, words: Sequence[int], least: int) -> tuple[int, range]:
        """How many of these words, from the last, occur together, and where in `order`; or 0."""
        lengths = range(least, len(words) + 1)  # where one does not occur, longer ones do not
        fits = bisect_left(lengths, True, key=lambda n: not self.matches(words[len(words) - n :]))
        if not fits:
            return 0, range(0)
        length = least - 1 + fits
        return length, self.matches(words[len(words) - length :])


class Lookup(SourceSession):
    """One row's view of a table."""

    name = NAME

    def __init__(self, table: SuffixTable, least: int, samples: int) -> None:
        self.table, self.least, self.samples = table, least, samples
        self.recent: list[int] = []

    def extend(self, tokens: Sequence[int]) -> None:
        self.recent = [*self.recent, *tokens[-REACH:]][-REACH:]

    def branches(self, depth: int) -> list[Branch]:
        length, found = self.table.longest(self.recent, self.least)
        if not found or not depth or not self.samples:
            return []
        count = min(self.samples, len(found))
        places = [self.table.order[found[i * len(found) // count]] for i in range(count)]
        behind = (self.table.words(place + length, depth) for place in places)
        return weighed([words[: [*words, END].index(END)] for words in behind])

    def logp(self, context: Sequence[int], candidates: Ids) -> Array:
        before = np.array([[(*self.recent, *context)[-1]]])
        with np.errstate(divide="ignore"):
            return np.asarray(np.log(self.pairs(before, candidates[None])[0, 0]))

    def pairs(self, left: Ids, right: Ids) -> Array:
        return self.table.shares(left[:, :, None], right[:, None, :])


def weighed(continuations: Sequence[Sequence[int]]) -> list[Branch]:
    """Each different continuation; a token's weight is its share among those equal before it."""
    counts: dict[tuple[int, ...], int] = {}
    for words in continuations:
        for i in range(len(words) + 1):
            prefix = tuple(words[:i])
            counts[prefix] = counts.get(prefix, 0) + 1
    return [
        Branch(
            words,
            tuple(counts[words[: i + 1]] / (counts[words[:i]] + 1) for i in range(len(words))),
            NAME,
        )
        for words in dict.fromkeys(map(tuple, continuations))
        if words
    ]
