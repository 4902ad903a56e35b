"""Transforms of the logits, before tokens are proposed and scored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from dllm.decoding.state import Fields

State = dict[str, Tensor]  # tensors [B, ...] that one keeps between steps, by assigning to a key


class Transform(Protocol):
    """Changes logits before tokens are proposed and scored."""

    @property
    def fields(self) -> Fields:
        """The state that it keeps."""
        ...

    def apply(self, logits: Tensor, pos: Tensor, valid: Tensor, state: State) -> Tensor:
        """New logits for logits [B, K, V] of the positions `pos` [B, K], perhaps in place; banned
        tokens are -inf already. Called for a few positions at a time, for each once a step.

        Entries that are not `valid` [B, K] are no masked positions: known ones that a rule looks
        at, or padding, whatever logits, which stands at position T. The memory of `logits` is used
        again: keep copies of what is needed later.
        """
        ...


@dataclass(frozen=True, slots=True)
class Transforming:
    """A transform at work: for all rows, or the `rows` [n] (indices) that are its own."""

    transform: Transform
    state: State
    rows: Tensor | None = None

    def apply(self, z: Tensor, pos: Tensor, valid: Tensor) -> Tensor:
        """Logits z [B, K, V], those of its rows transformed."""
        if self.rows is None:
            return self.transform.apply(z, pos, valid, self.state)
        state = {name: t[self.rows] for name, t in self.state.items()}
        own = self.transform.apply(z[self.rows], pos[self.rows], valid[self.rows], state)
        for name, t in state.items():
            self.state[name] = self.state[name].index_copy(0, self.rows, t)
        return z.index_copy(0, self.rows, own)
