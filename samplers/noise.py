"""Random numbers that depend on (seed, row, step, position) and on nothing else.

A row therefore draws the same numbers whatever shares its batch, and the global generator is never
touched.
"""

from __future__ import annotations

import torch
from torch import Tensor

_GOLDEN = -0x61C8864680B583EB  # 2**64 / golden ratio, as a signed 64-bit number
_MIX_1, _MIX_2 = -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of signed 64-bit numbers."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    """SplitMix64's finaliser: every input bit changes about half of the output bits."""
    x = (x ^ _shift(x, 30)) * _MIX_1
    x = (x ^ _shift(x, 27)) * _MIX_2
    return x ^ _shift(x, 31)


def seed_key(seed: int) -> Tensor:
    """The key, an int64 scalar, of draws that depend on a seed alone."""
    # The seed is mixed at once: else seed s and row r + 31 would give what s + 1 and r give.
    return _mix(torch.tensor((seed + 2**63) % 2**64 - 2**63))


def row_key(seed: int, row: int) -> int:
    """The key of a row's draws, a signed 64-bit number: its seed and its identity, mixed."""
    return int(_keyed(seed_key(seed), torch.tensor(row)))


def uniform(key: Tensor, *counters: Tensor) -> Tensor:
    """Float64 uniforms in the open interval (0, 1), one per broadcast entry of key and counters.

    key: see `row_key`. They have 52 random bits: float32 would cut the tail of a Gumbel or
    exponential made from them (arXiv 2409.02908, section 4).
    """
    for counter in counters:
        key = _keyed(key, counter)
    return (_shift(_mix(key), 12).double() + 0.5) * 2.0**-52


def _keyed(key: Tensor, counter: Tensor) -> Tensor:
    return _mix(key * 31 + _GOLDEN + counter)


def gumbel(u: Tensor) -> Tensor:
    """Standard Gumbel variates from uniforms `u` in (0, 1), in float64."""
    return -(-u.log()).log()
