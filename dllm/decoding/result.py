"""Decision of a step: as the rules make it on the device, and as the host reads it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dllm.decoding.canvas import Array

NOTHING, REOPENED = -1, -2  # in place of a token: the position is as it was, is masked again


@dataclass(frozen=True, slots=True)
class Result:
    """What a step decided, on the host.

    code [B, K]: the token that stands at each looked-at position from now on, or NOTHING, or
    REOPENED. conf [B, K] fp32: of the proposals. numbers: [B] by name: what else the host must
    know, "length", "open", "start" and "end" of narrowed windows, states of planners. Where a
    speculator guesses, ahead [B, K]: the first of its sets that holds a candidate, from 1, or
    NOTHING; token [B, K]: the proposals.
    """

    code: Array
    conf: Array
    numbers: dict[str, Array]
    ahead: Array | None = None
    token: Array | None = None

    @classmethod
    def of(cls, packed: Array, count: int, blocks: int, names: Sequence[str]) -> Result:
        """Of int32 [B, C]: `blocks` numbers for each of `count` positions, then one by name."""
        code, conf, *more = (packed[:, i * count : (i + 1) * count] for i in range(blocks))
        numbers = {name: packed[:, blocks * count + i] for i, name in enumerate(names)}
        return cls(code, np.ascontiguousarray(conf).view(np.float32), numbers, *more)

    def without(self, rows: Sequence[int]) -> Result:
        """The same, but that nothing was decided in `rows` (indices)."""
        code = self.code.copy()
        code[list(rows)] = NOTHING
        return replace(self, code=code)


@dataclass(frozen=True, slots=True)
class Made:
    """A decision: chosen, token [B, K]; reopened [B, K] bool, edited [B, K] (a token or -1), open
    [B] bool, ahead [B, K], None where nothing does that.
    """

    chosen: Tensor
    token: Tensor
    reopened: Tensor | None
    edited: Tensor | None
    open: Tensor | None
    ahead: Tensor | None

    def only(self, member: Tensor) -> Made:
        """That of the rows `member` [B, 1]; nothing in the others."""

        def numbers(t: Tensor | None) -> Tensor | None:
            return None if t is None else t.masked_fill(~member, -1)

        return Made(
            self.chosen & member,
            self.token,
            None if self.reopened is None else self.reopened & member,
            numbers(self.edited),
            None if self.open is None else self.open & member[:, 0],
            numbers(self.ahead),
        )

    def by_row(self, count: int) -> Made:
        """That of B rows with `count` windows each; a position lies in one of them at most."""
        if count == 1:
            return self

        def windows_of(t: Tensor) -> Tensor:
            return t.view(-1, count, *t.shape[1:])

        def any_of(t: Tensor | None) -> Tensor | None:
            return None if t is None else windows_of(t).any(1)

        def most_of(t: Tensor | None) -> Tensor | None:
            return None if t is None else windows_of(t).amax(1)

        return Made(
            windows_of(self.chosen).any(1),
            windows_of(torch.where(self.chosen, self.token, 0)).sum(1),
            any_of(self.reopened),
            most_of(self.edited),
            any_of(self.open),
            most_of(self.ahead),
        )

    def joined(self, other: Made) -> Made:
        """Both; they are about different rows."""

        def either(one: Tensor | None, two: Tensor | None, how: Any) -> Tensor | None:
            return two if one is None else one if two is None else how(one, two)

        return Made(
            self.chosen | other.chosen,
            torch.where(other.chosen, other.token, self.token),
            either(self.reopened, other.reopened, torch.logical_or),
            either(self.edited, other.edited, torch.maximum),
            either(self.open, other.open, torch.logical_or),
            either(self.ahead, other.ahead, torch.maximum),
        )
