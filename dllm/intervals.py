"""Confidence intervals of what is measured by counting."""

from __future__ import annotations

import math

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
