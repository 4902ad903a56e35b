"""Chain: drafts for a loop of others, one text, and for each of its rounds a path of tokens.

Whoever asks checks the path himself: by drawing from the target and comparing, never by a ratio
with the drafter's probabilities, since these tokens are searched for and not drawn from them.
"""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter

import numpy as np
import torch
from numpy.typing import NDArray

from dllm.verify.draft.rows import RowDrafter, SpeculationComponents
from dllm.verify.protocol import Drafter
from dllm.verify.rng import TorchRng


class Chain:
    """One text. `propose` reads it as it grows, and sees from that what was accepted.

    components: of all texts together, so that what one shows of the sources and of the clock
    serves the next.  drafter: None for model-free drafts only.  vocab_size: of the target; a path
    ends before an id that is not below it.  limit: tokens that the text will not exceed, prompt
    included.  seed: of a search that draws, which does so apart from the target.
    """

    def __init__(
        self,
        components: SpeculationComponents,
        drafter: Drafter | None,
        vocab_size: int,
        limit: int,
        seed: int = 0,
    ) -> None:
        self.limit = limit
        self._made = components, drafter, vocab_size
        self._rng = TorchRng(torch.Generator().manual_seed(seed))
        self._rows: RowDrafter | None = None  # from the first text on

    @property
    def context(self) -> list[int]:
        """The text as far as it was read."""
        return self._rows.rows[0].tokens if self._rows else []

    def continues(self, context: Sequence[int]) -> bool:
        """Whether `context` is this text, and longer."""
        known = self.context
        n = len(known)
        if len(context) <= n or list(context[n - 1 : n]) != known[-1:]:  # soon seen
            return False
        return list(context[:n]) == known

    def propose(self, context: Sequence[int], most: int) -> list[int]:
        """Up to `most` tokens behind `context`, which continues that of the call before."""
        asked = perf_counter()
        if self._rows is None:
            components, drafter, vocab_size = self._made
            self._rows = RowDrafter(
                components, drafter, vocab_size, [context], [self.limit], [self._rng], paths=True
            )
        else:  # between two calls the target is at work, and all that is new is emitted
            self._rows.settle([context[len(self.context) :]], verified=asked)
        [tree] = self._rows.propose(most)
        return tree.tokens[1:]

    @property
    def top(self) -> int:
        """How many tokens behind each verified one `learn` wants; 0: it need not be called."""
        return self._rows.top if self._rows else 0

    def learn(self, top: NDArray[np.int64]) -> None:
        """top [n, k]: what the target finds most likely behind the text and its drafts."""
        if self._rows is not None:
            self._rows.learn(0, top)
