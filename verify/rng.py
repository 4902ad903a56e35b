"""Random choices as an object, so that tests can enumerate what generation draws."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from torch import Tensor


class Rng(Protocol):
    """Source of all randomness of drafting and acceptance."""

    def choice(self, probs: Tensor) -> int:
        """An index drawn with the probabilities probs [n], which sum to 1 up to rounding."""
        ...

    def flip(self, prob: float) -> bool:
        """True with probability `prob`; never where it is 0, always where it is 1."""
        ...


def row_seed(seed: int, row: int) -> int:
    """What the generator of row number `row` is seeded with in a run of that seed (not negative).

    torch's CPU generator takes 32 bits of a seed: so all bits of the run's are hashed to them, and
    no two of 2**32 rows that are numbered one after another get the same.
    """
    words = (seed % 2**32, seed >> 32, (row >> 32) % 2**32)
    (hashed,) = np.random.SeedSequence(words).generate_state(1)
    return (int(hashed) + row) % 2**32


class TorchRng:
    """Draws as `transformers` does: one multinomial [1, n] per choice, so that seeds agree.

    generator: None for the global one, of the device that the probabilities are on; another one
    draws on its own device, wherever they are.
    """

    def __init__(self, generator: torch.Generator | None = None) -> None:
        self.generator = generator
        self.device = generator.device if generator else None

    def choice(self, probs: Tensor) -> int:
        return int(torch.multinomial(probs.to(self.device)[None], 1, generator=self.generator))

    def flip(self, prob: float) -> bool:
        coin = torch.rand((), generator=self.generator, dtype=torch.float64, device=self.device)
        return coin.item() < prob
