"""Rows of a batch: one request each, with its own options, and the counters of its progress."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from dllm.config import DecodeConfig
from dllm.decoding.answers import Answers
from dllm.decoding.canvas import Array, Canvas, Prefilled, Windows
from dllm.decoding.components import DecodingComponents
from dllm.output import Commit, Timings


@dataclass(frozen=True, slots=True)
class DecodeRequest:
    """A prompt and how it is decoded.

    row_id: its identity in random draws (None: its number in the batch). prefilled: (offset behind
    the prompt, token ids) that stand in its answer from the start.
    """

    prompt: Sequence[int]
    config: DecodeConfig
    row_id: int | None = None
    prefilled: Prefilled = ()


@dataclass(slots=True, eq=False)
class Row:
    """A request at work. commits: all that its steps made so far.

    key: of its random draws. joined: the batch's timings when it came; prompt: seconds of its first
    forward.
    """

    number: int
    config: DecodeConfig
    components: DecodingComponents
    answers: Answers
    key: int
    joined: Timings
    prompt: float = 0.0
    commits: list[Commit] = field(default_factory=list)
    searched: int = -1  # answer tokens in which stop strings were looked for


@dataclass(frozen=True, slots=True)
class Counters:
    """Progress of each row [B] and of each of its windows [B, N].

    step: forwards of the row that decided something; spare: of these, those that gained no token.
    window_start: where the window was last seen; window_step: forwards in it; window_masked: masked
    positions it began with, 0 for a window that is still to be entered.
    """

    step: Array
    spare: Array
    window_start: Array
    window_step: Array
    window_masked: Array

    @classmethod
    def fresh(cls, rows: int, windows: int = 1) -> Counters:
        zeros, wide = np.zeros(rows, dtype=np.int64), np.zeros((rows, windows), dtype=np.int64)
        return cls(zeros, zeros, wide - 1, wide, wide)

    def wide(self, windows: int) -> Counters:
        """The same with at least `windows` windows a row."""
        more = windows - self.window_start.shape[1]
        if more <= 0:
            return self
        pad = ((0, 0), (0, more))
        return replace(
            self,
            window_start=np.pad(self.window_start, pad, constant_values=-1),
            window_step=np.pad(self.window_step, pad),
            window_masked=np.pad(self.window_masked, pad),
        )

    def entered(self, windows: Windows, canvas: Canvas) -> Counters:
        """Begun anew where a window of `canvas` is a new one."""
        new = (self.window_start != windows.start) | (self.window_masked == 0)
        if not new.any():
            return self
        if windows.start.shape[1] == 1:
            masked = (canvas.masked & windows.contains(canvas.pos)).sum(1)[:, None]
        else:
            masked = (canvas.masked[:, None] & windows.each(canvas.pos)).sum(2)
        return replace(
            self,
            window_start=np.where(new, windows.start, self.window_start),
            window_step=np.where(new, 0, self.window_step),
            window_masked=np.where(new, masked, self.window_masked),
        )

    def stepped(self, gained: Array) -> Counters:
        """One step later; `gained` [B]: rows of which it made more tokens known than masked."""
        return replace(
            self,
            step=self.step + 1,
            spare=self.spare + ~gained,
            window_step=self.window_step + 1,
        )

    def where(self, moved: Array, other: Counters) -> Counters:
        """These in the rows that have `moved` [B], those of `other` elsewhere."""
        count = max(c.window_start.shape[1] for c in (self, other))
        one, two = self.wide(count), other.wide(count)
        pairs = ((getattr(one, name), getattr(two, name)) for name in self.__slots__)
        return Counters(
            *(np.where(moved[:, None] if a.ndim > 1 else moved, a, b) for a, b in pairs)
        )

    def take(self, rows: Array) -> Counters:
        """Those of `rows` [n] (indices)."""
        return Counters(*(getattr(self, name)[rows] for name in self.__slots__))

    def joined(self, other: Counters) -> Counters:
        """These rows, then those of `other`."""
        count = max(c.window_start.shape[1] for c in (self, other))
        one, two = self.wide(count), other.wide(count)
        return Counters(
            *(np.concatenate([getattr(c, name) for c in (one, two)]) for name in self.__slots__)
        )
