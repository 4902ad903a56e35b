"""Single numbers for a curve of accuracy against parallelism.

A curve is given as pairs (x, score in percent), where x counts tokens, or answers, per forward.
Scores between measured pairs are interpolated on the Pareto front alone: a worse setting beside a
better one changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

Pair = tuple[float, float]


def pareto(pairs: Sequence[Pair]) -> list[Pair]:
    """The pairs that no other one matches in both and beats in one, the least parallel first."""
    front: list[Pair] = []
    for x, y in sorted(pairs, reverse=True):
        if not front or y > front[-1][1]:
            front.append((x, y))
    return front[::-1]


def log_area(pairs: Sequence[Pair], reach: float) -> float | None:
    """Log-parallelism area: the mean over log2 p, 1 <= p <= reach, of the best score at parallelism
    >= p, 0 where there is none. In percent; a flat curve up to `reach` has its score. It does not
    depend on competitors. None for reach <= 1.
    """
    if reach <= 1:
        return None
    area = start = 0.0
    for x, y in pareto(pairs):
        end = math.log2(min(max(x, 1.0), reach))
        area, start = area + y * (end - start), end
    return area / math.log2(reach)


def parallelism_at(
    pairs: Sequence[Pair], percent: float, *, interpolate: bool = False
) -> float | None:
    """PBx of ParallelBench (arXiv 2510.04767): the largest x with a score of at least `percent`,
    None if there is none. interpolate: linearly, between neighbours on the front.
    """
    front = pareto(pairs)
    reached = [pair for pair in front if pair[1] >= percent]
    if not reached:
        return None
    x, y = reached[-1]
    if interpolate and len(reached) < len(front):
        next_x, next_y = front[len(reached)]
        x += (y - percent) / (y - next_y) * (next_x - x)
    return x


def best_at(pairs: Sequence[Pair], x: float) -> float | None:
    """The best score at parallelism >= x, None if nothing reaches that far."""
    return max((score for reached, score in pairs if reached >= x), default=None)


def aup(pairs: Sequence[Pair], y_max: float, *, cut: float = 5.0, alpha: float = 3.0) -> float:
    """Accuracy under parallelism as d3LLM defines it. y_max: best score of all methods compared.

    Pairs more than `cut` points below the least parallel one are left out (the released code fails
    where the last one is).
    """
    ordered = sorted(pairs, key=lambda pair: (pair[0], -pair[1]))
    if not ordered or y_max <= 0:
        return 0.0
    first_x, first_y = ordered[0]
    kept = [
        (x, y * min(math.exp(-alpha * (1 - y / y_max)), 1.0))
        for x, y in ordered
        if y >= first_y - cut
    ]
    steps = ((x - last_x) * (y + last_y) / 2 for (last_x, last_y), (x, y) in pairwise(kept))
    return first_x * first_y + sum(steps)


def centre_of_mass(pairs: Sequence[Pair]) -> float | None:
    """Mean x weighted by score (ParallelBench, figure 6): smaller is harder to decode in parallel.
    It depends on the grid of settings. None where all scores are 0.
    """
    weight = sum(y for _, y in pairs)
    return sum(x * y for x, y in pairs) / weight if weight else None


def times_faster(pairs: Sequence[Pair], baseline: Sequence[Pair]) -> float:
    """The factor over the baseline's x at equal score: the geometric mean over the scores
    that both fronts span, or at the lower best score where they span none in common
    (Bjøntegaard's delta rate, VCEG-M33, with lines for cubics).
    """
    new, old = ([(y, math.log2(x)) for x, y in pareto(curve)[::-1]] for curve in (pairs, baseline))
    return math.exp2(_mean_gap(new, old))


def points_more(pairs: Sequence[Pair], baseline: Sequence[Pair]) -> float:
    """The points of score over the baseline at equal x: the mean over log x that both
    fronts span, or at the lower largest x where they span none in common.
    """
    new, old = ([(math.log2(x), y) for x, y in pareto(curve)] for curve in (pairs, baseline))
    return _mean_gap(new, old)


def _mean_gap(new: Sequence[Pair], old: Sequence[Pair]) -> float:
    """Mean of new - old, lines through pairs of ascending first members, where both are defined.

    Below its first pair a front goes on level: what reaches more than asked reaches that too.
    """
    (new_x, new_y), (old_x, old_y) = np.array(new).T, np.array(old).T
    high = min(new_x[-1], old_x[-1])
    low = min(max(new_x[0], old_x[0]), high)
    knots = np.unique(np.clip([*new_x, *old_x, low, high], low, high))
    gap = np.interp(knots, new_x, new_y) - np.interp(knots, old_x, old_y)
    return float(gap[0] if low == high else np.trapezoid(gap, knots) / (high - low))
