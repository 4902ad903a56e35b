"""Confidence intervals of what is measured by counting."""

from __future__ import annotations

import math
from collections.abc import Sequence

Z = 1.96  # 95%


def wilson(right: int, count: int, z: float = Z) -> tuple[float, float]:
    """Wilson's interval of a share: `right` of `count`."""
    p, spread = right / count, 1 + z * z / count
    middle = (p + z * z / (2 * count)) / spread
    half = z * math.sqrt(p * (1 - p) / count + z * z / (4 * count * count)) / spread
    return max(0.0, middle - half), min(1.0, middle + half)


def paired(lost: int, gained: int, count: int, z: float = Z) -> tuple[float, float]:
    """Agresti and Min's interval of (lost - gained) / count for matched pairs."""
    shift, moved, n = lost - gained, lost + gained + 1, count + 2
    middle, half = shift / n, z * math.sqrt(moved - shift**2 / n) / n
    return max(-1.0, middle - half), min(1.0, middle + half)


def weighted(parts: Sequence[tuple[float, int, int]], z: float = Z) -> tuple[float, float]:
    """Interval of a weighted sum of shares of independent samples, parts (weight, right, count).

    Adds the distances to Wilson's limits as if they were standard errors (Newcombe's square-and-add
    interval; MOVER of Zou and Donner, 2008). One part of weight 1 gives Wilson's interval.
    """
    value = down = up = 0.0
    for weight, right, count in parts:
        share = right / count
        limits = [weight * (limit - share) for limit in wilson(right, count, z)]
        value += weight * share
        down += min(limits) ** 2
        up += max(limits) ** 2
    return value - math.sqrt(down), value + math.sqrt(up)
