"""Estimates learned while decoding: seconds of passes, and how far a draft's weights are right."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence, Set
from math import inf
from statistics import fmean, median

import numpy as np
from numpy.typing import NDArray

from dllm.verify.control.controllers import Spent

ENOUGH = 3  # measures until a median is believed: the first ones of a new shape are often slow
RECENT = 7  # measures that a median is taken of: half of them, and a change is believed
GROWTH = 4  # a pass may be this much wider than any that was measured
SLOPE = 1 / 64  # prior: a pass over 64 more tokens takes as much longer as one over a token takes


def steps(most: int) -> list[int]:
    """The powers of two below `most`, and `most` itself: sizes that are worth comparing."""
    return [1 << i for i in range(most.bit_length()) if 1 << i < most] + [most]


class PassTimes:
    """Seconds by size: medians of recent measures for each power of two.

    They never fall with size: where they do, the newest are right.

    Between measured sizes it is linear. Beyond them, and where a size was measured less than
    ENOUGH times, it goes by the prior's shape, or by the measures if they are lower: what is
    hardly known looks cheap, is therefore tried, and then is known. What was forgotten is tried
    again.
    """

    def __init__(self) -> None:
        self._bins: dict[int, deque[tuple[int, int, float]]] = {}  # (now, size, seconds)
        self._points: dict[int, tuple[float, float]] = {}  # mean size, median seconds of a bin
        self._trusted: list[tuple[float, float]] = []  # the points that are believed, ascending

    def add(self, size: int, seconds: float, now: int) -> None:
        """A measure of the round `now`."""
        key = size.bit_length()
        self._bins.setdefault(key, deque(maxlen=RECENT)).append((now, size, seconds))
        self._fit({key})

    def forget(self, before: int) -> None:
        """Drop the measures of rounds before this one."""
        changed = {key for key, measures in self._bins.items() if measures[0][0] < before}
        for key in changed:
            while self._bins[key] and self._bins[key][0][0] < before:
                self._bins[key].popleft()
        if changed:
            self._fit(changed)

    def _fit(self, changed: Set[int]) -> None:
        """Take the points of these bins anew, and choose and order those that are believed."""
        for key in changed:
            if measures := self._bins[key]:
                typical = median(seconds for *_, seconds in measures)
                self._points[key] = fmean(size for _, size, _ in measures), typical
            else:
                del self._bins[key], self._points[key]
        enough = [key for key, measures in self._bins.items() if len(measures) >= ENOUGH]
        newest = sorted(enough or self._bins, key=lambda key: -self._bins[key][-1][0])
        self._trusted = []
        for size, seconds in (self._points[key] for key in newest):  # what is older gives way
            least = max((time for at, time in self._trusted if at < size), default=0.0)
            most = min((time for at, time in self._trusted if at > size), default=inf)
            self._trusted.append((size, min(max(seconds, least), most)))
        self._trusted.sort()

    def known(self, size: int) -> bool:
        """Whether sizes about this one were measured often enough."""
        return len(self._bins.get(size.bit_length(), ())) >= ENOUGH

    def widest(self) -> int:
        """The largest size that was measured; 0 before any."""
        return max((size for found in self._bins.values() for _, size, _ in found), default=0)

    def __call__(self, size: int) -> float:
        """Estimated seconds; 0 before the first measure."""
        if not self._trusted:
            return 0.0
        estimate = self._interpolate(size)
        key = size.bit_length()
        if key in self._points and not self.known(size):
            return min(estimate, self._points[key][1])
        return estimate

    def _interpolate(self, size: int) -> float:
        """Between the believed points linear, outside as the prior has it."""
        (first, _), (last, _) = self._trusted[0], self._trusted[-1]
        inside = min(max(size, first), last)
        above = next(i for i, (at, _) in enumerate(self._trusted) if at >= inside)
        (left, low), (right, high) = self._trusted[max(above - 1, 0)], self._trusted[above]
        share = (inside - left) / (right - left) if right > left else 1.0
        prior = (1 + SLOPE * size) / (1 + SLOPE * inside)
        return (low + share * (high - low)) * prior


class CostModel:
    """Seconds of a round's three pieces, by the shape of the batch; see Curve for the estimates.

    Rows count in powers of two, each with its own curves.  memory: rounds after which a measure
    is forgotten.
    """

    def __init__(self, memory: int) -> None:
        self.memory = memory
        self._now = 0
        self._curves: dict[tuple[str, int], PassTimes] = {}

    def _curve(self, kind: str, rows: int) -> PassTimes:
        key = kind, (rows - 1).bit_length()
        if key not in self._curves:
            self._curves[key] = PassTimes()
        return self._curves[key]

    def add(self, seen: Spent, searched: bool, drafting: bool) -> None:
        """Learn from one round. searched: whether drafts were looked for. drafting: whether the
        drafter ran in the round before as well: else it has more to read than usual."""
        self._now += 1
        for curve in self._curves.values():
            curve.forget(self._now - self.memory + 1)
        host = "search" if searched else "host"
        self._curve("verify", seen.rows).add(seen.width, seen.verify, self._now)
        self._curve(host, seen.rows).add(1, seen.host, self._now)
        if seen.depth and drafting:
            self._curve("draft", seen.rows).add(seen.depth, seen.draft, self._now)

    def round(self, rows: int, width: int, depth: int, searched: bool) -> float:
        """Seconds of a round of this shape; depth 0: without the drafter."""
        draft = self._curve("draft", rows)(depth) if depth else 0.0
        host = self._curve("search" if searched else "host", rows)(1)
        return draft + self._curve("verify", rows)(width) + host

    def plain(self, rows: int) -> float:
        """Seconds of a round without speculation."""
        return self.round(rows, 1, 0, searched=False)

    def known(self, rows: int) -> bool:
        """Whether a round without speculation was measured often enough to compare with."""
        return self._curve("verify", rows).known(1) and self._curve("host", rows).known(1)

    def widest(self, rows: int) -> int:
        """The widest pass to try: wider ones come when this one has been measured."""
        return GROWTH * max(self._curve("verify", rows).widest(), 1)


class Calibration:
    """How often nodes of about the same weight were really accepted.

    A weight w is that share of its class, in proportion to w, as if PRIOR nodes more had come as
    w ** a says; a is what would make all nodes right on average, since drafts that claim too much
    or too little do so at every token of a path. Old rounds count less and less.  keep: what one
    still counts for after the next.
    """

    EDGES = np.array(
        [1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 0.01, 0.03, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 0.97]
    )
    PRIOR = 4

    def __init__(self, keep: float = 0.97) -> None:
        self.keep = keep
        # nodes, expected and really accepted ones of each class; at first as good as none
        self._sums = np.full((3, len(self.EDGES) + 1), 1e-9)

    def add(self, weights: NDArray[np.float64], kept: NDArray[np.bool_]) -> None:
        """Learn from the verified nodes of one row and round: weights, kept [n]."""
        self._sums *= self.keep
        index = np.searchsorted(self.EDGES, weights)
        for total, found in zip(self._sums, (np.ones(len(weights)), weights, kept)):
            np.add.at(total, index, found)

    def __call__(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """Corrected weights [n], still in [0, 1]; they do not rise where the given ones do not."""
        count, expected, accepted = self._sums[:, np.searchsorted(self.EDGES, weights)]
        hits = accepted * np.minimum(weights * count / np.maximum(expected, 1e-30), 1)
        prior = self.PRIOR * weights ** self._exponent()
        right: NDArray[np.float64] = np.minimum((hits + prior) / (count + self.PRIOR), 1)
        order = np.argsort(-weights, kind="stable")
        right[order] = np.minimum.accumulate(right[order])
        return right

    def _exponent(self) -> float:
        count, expected, accepted = self._sums.sum(1)
        mean = min(max(expected / count, 1e-6), 1 - 1e-6)
        return float(np.log((accepted + self.PRIOR * mean) / (count + self.PRIOR)) / np.log(mean))


def best_width(
    weights: Sequence[NDArray[np.float64]], widths: Sequence[int], seconds: Sequence[float]
) -> int:
    """Of the common widths of a pass, the one with most tokens per second; the least among equals.

    weights: of each row's drafts, in order; a row fills the width with its first ones, since what
    is padded costs as much. seconds: of a whole round at each width.
    """
    tokens = [sum(1 + float(row[: width - 1].sum()) for row in weights) for width in widths]
    rates = [count / max(time, 1e-12) for count, time in zip(tokens, seconds)]
    return widths[int(np.argmax(rates))]
