"""What is learned while decoding: how long passes take, and how far a draft's weights are right."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from statistics import fmean, median

import numpy as np
from numpy.typing import NDArray

from dllm.verify.control import Spent

ENOUGH = 3  # measures until a median is believed: the first ones of a new shape are often slow
RECENT = 15  # measures that a median is taken of
GROWTH = 4  # a pass may be this much wider than any that was measured
SLOPE = 1 / 64  # prior: a pass over 64 more tokens takes as much longer as one over a token takes


def steps(most: int) -> list[int]:
    """The powers of two below `most`, and `most` itself: sizes that are worth comparing."""
    return [1 << i for i in range(most.bit_length()) if 1 << i < most] + [most]


class Curve:
    """Seconds by size: medians of recent measures for each power of two, never falling.

    Between measured sizes it is linear. Beyond them, and where a size was measured less than
    ENOUGH times, it goes by the prior's shape, or by the measures if they are lower: what is
    hardly known looks cheap, is therefore tried, and then is known. Measures are forgotten after
    `memory` others, so this happens again.
    """

    def __init__(self, memory: int) -> None:
        self.memory = memory
        self.count = 0
        self._bins: dict[int, deque[tuple[int, int, float]]] = {}  # (count, size, seconds)
        self._points: dict[int, tuple[float, float]] = {}  # mean size, median seconds of a bin
        self._trusted: list[tuple[float, float]] = []  # the points that are believed, ascending

    def add(self, size: int, seconds: float) -> None:
        self.count += 1
        key = size.bit_length()
        self._bins.setdefault(key, deque(maxlen=RECENT)).append((self.count, size, seconds))
        changed = {key}
        for other, measures in self._bins.items():
            while measures and measures[0][0] <= self.count - self.memory:
                measures.popleft()
                changed.add(other)
        for other in changed:
            self._refresh(other)
        enough = [point for key, point in self._points.items() if len(self._bins[key]) >= ENOUGH]
        self._trusted = sorted(enough or self._points.values())
        for i in reversed(range(len(self._trusted) - 1)):  # less never costs more
            at, time = self._trusted[i]
            self._trusted[i] = at, min(time, self._trusted[i + 1][1])

    def _refresh(self, key: int) -> None:
        measures = self._bins[key]
        if measures:
            typical = median(seconds for *_, seconds in measures)
            self._points[key] = fmean(size for _, size, _ in measures), typical
        else:
            del self._bins[key], self._points[key]

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

    Rows count in powers of two, each with its own curves. memory: see Curve.
    """

    def __init__(self, memory: int) -> None:
        self.memory = memory
        self._curves: dict[tuple[str, int], Curve] = {}

    def _curve(self, kind: str, rows: int) -> Curve:
        key = kind, (rows - 1).bit_length()
        if key not in self._curves:
            self._curves[key] = Curve(self.memory)
        return self._curves[key]

    def add(self, seen: Spent, searched: bool, drafting: bool) -> None:
        """Learn from one round. searched: whether drafts were looked for. drafting: whether the
        drafter ran in the round before as well: else it has more to read than usual."""
        self._curve("verify", seen.rows).add(seen.width, seen.verify)
        self._curve("search" if searched else "host", seen.rows).add(1, seen.host)
        if seen.depth and drafting:
            self._curve("draft", seen.rows).add(seen.depth, seen.draft)

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

    A weight is multiplied by accepted / expected of its class, both with one expected acceptance
    added to begin with; old rounds count less and less.  keep: what a round still counts for
    after the next.
    """

    EDGES = np.array([0.01, 0.03, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 0.97])

    def __init__(self, keep: float = 0.97) -> None:
        self.keep = keep
        self.expected = np.zeros(len(self.EDGES) + 1)
        self.accepted = np.zeros(len(self.EDGES) + 1)

    def add(self, weights: NDArray[np.float64], kept: NDArray[np.bool_]) -> None:
        """Learn from the verified nodes of one row and round: weights, kept [n]."""
        index = np.searchsorted(self.EDGES, weights)
        for total, found in ((self.expected, weights), (self.accepted, kept)):
            total *= self.keep
            np.add.at(total, index, found)

    def __call__(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """Corrected weights [n], still in [0, 1]; they do not rise where the given ones do not."""
        ratio = (self.accepted + 1) / (self.expected + 1)
        right = np.minimum(weights * ratio[np.searchsorted(self.EDGES, weights)], 1)
        order = np.argsort(-weights, kind="stable")
        right[order] = np.minimum.accumulate(right[order])
        return right


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
