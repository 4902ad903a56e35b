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

    Wilson's half-widths add up as standard errors do. Wilson's shift of the middle counts for one
    part in full, for k alike parts by 1/k, as in one sample as large as all of them (ours, for want
    of a published interval that holds near shares of 1; the tests draw how often it holds).
    """
    value = shift = squares = total = 0.0
    for weight, right, count in parts:
        low, high = wilson(right, count, z)
        half = abs(weight) * (high - low) / 2
        value += weight * right / count
        shift += weight * ((low + high) / 2 - right / count)
        squares, total = squares + half * half, total + half
    middle, half = value + shift * squares / total**2, math.sqrt(squares)
    least, most = (sum(w for w, *_ in parts if w * sign > 0) for sign in (-1, 1))
    return max(least, middle - half), min(most, middle + half)
