"""The exact cache of block-causal models such as Fast-dLLM v2 (arXiv 2509.26328) and SDAR.

Attention never looks past its own block, so that the keys of a finished block are final.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from dllm.cache.policy import SINCE_ENTERED, Facts, PolicyBase, Query, State, Step, entered
from dllm.decoding.state import Fields, StateField


@dataclass(frozen=True)
class BlockPolicy(PolicyBase):
    """Compute the open blocks; finished ones once more, in the forward that opens the next.

    Exact: what is read was computed from the tokens that stand there now. The forward that stores a
    finished block is that of the next block's first step, so that it costs none of its own.

    exact=False is Fast-dLLM v2's sub-block cache (section 3.3), for a planner with blocks smaller
    than the model's: the whole open block is computed when a window is entered and while the
    window's first position is masked, and the window alone otherwise. block_length: the model's.
    """

    paper: ClassVar[str] = "Fast-dLLM v2, arXiv 2509.26328"
    fields: ClassVar[Fields] = SINCE_ENTERED | {"stored": StateField(False, "bool", True)}
    exact: bool = True
    block_length: int | None = None

    def bind(self, spec: Facts) -> BlockPolicy:
        """Know the model's blocks; ValueError if it attends in both directions everywhere."""
        if spec.block_length is None:
            raise ValueError(
                "expected a block-causal model, but this one attends both ways: use cache='dual'"
            )
        if self.block_length not in (None, spec.block_length):
            own = spec.block_length
            raise ValueError(f"block_length={self.block_length}: the model's is {own}")
        return replace(self, block_length=spec.block_length)

    def query(self, step: Step, state: State) -> Query:
        assert self.block_length is not None
        pos, size = step.canvas.pos, self.block_length
        # behind the last position that the step needs, and behind its block
        last = np.where(step.want, pos + 1, step.end[:, None]).max(1)
        reach = -(-last // size) * size
        final = pos < (step.canvas.first_masked() // size * size)[:, None]  # [B, T] finished blocks
        # A rule may have masked tokens of a finished block again: nothing behind it is final any
        # more.
        stored = state["stored"] & final
        query = step.between(0, reach) & ~stored
        if not self.exact:
            first = np.take_along_axis(step.canvas.masked, step.start[:, None], 1)
            whole = entered(step, state)[:, None] | first
            query &= whole | step.window
        state["stored"] = stored | (query & final)
        return Query(query)
