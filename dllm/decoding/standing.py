"""State of a batch between two steps, so that an interrupt loses nothing that was told."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from dllm.decoding.canvas import Array, Canvas
from dllm.decoding.rows import Row
from dllm.output import Commit, Event, Finished, FinishReason, Output, Timings


@dataclass(frozen=True, slots=True)
class Standing:
    """The active rows as their last whole step left them: all that their Outputs are made of.

    A step works on new arrays and puts a new one of these in place of the old in a single
    assignment. Ctrl-C on whatever line finds a step made, its events waiting to be told, or not
    begun.

    By row: nfe and canvases [B], as in `Output`; told, how many of its commits are made. unsent:
    the events that are still to be told, an iterator that `yield from` empties: what is told is no
    longer in it.
    """

    canvas: Canvas
    rows: tuple[Row, ...]
    nfe: Array
    canvases: Array
    told: tuple[int, ...]
    timings: Timings
    unsent: Iterator[Event]

    @classmethod
    def empty(cls) -> Standing:
        none = np.zeros(0, dtype=np.int64)
        canvas = Canvas.from_prompts([], 0, 0)
        return cls(canvas, (), none, none, (), Timings(0, 0), iter(()))

    def joined(self, canvas: Canvas, rows: Sequence[Row], events: Sequence[Event]) -> Standing:
        """With `rows` behind the others, on a `canvas` that holds them too."""
        zeros = np.zeros(len(rows), dtype=np.int64)
        return replace(
            self,
            canvas=canvas,
            rows=(*self.rows, *rows),
            nfe=np.concatenate([self.nfe, zeros]),
            canvases=np.concatenate([self.canvases, zeros]),
            told=(*self.told, *(0 for _ in rows)),
            unsent=iter([*self.unsent, *events]),
        )

    def stepped(
        self,
        canvas: Canvas,
        nfe: Array,
        canvases: Array,
        commits: Sequence[Commit],
        timings: Timings,
    ) -> Standing:
        """One step later; `commits` are what it has to tell, and the rows know them already."""
        return replace(
            self,
            canvas=canvas,
            nfe=nfe,
            canvases=canvases,
            told=tuple(len(row.commits) for row in self.rows),
            timings=timings,
            unsent=iter([*self.unsent, *commits]),
        )

    def finished(
        self, reasons: Mapping[int, FinishReason], errors: Mapping[int, str]
    ) -> tuple[Standing, Array]:
        """Without the rows (indices) that have a reason to end, whose Outputs are still to be told;
        and which rows [n] (indices) the others were. The last ones move into the gaps.
        """
        ended = [
            Finished(self.rows[i].number, self._output(i, reasons[i], errors.get(i)))
            for i in sorted(reasons)
        ]
        stay = list(range(len(self.rows)))
        for i in sorted(reasons, reverse=True):
            last = stay.pop()
            if i < len(stay):
                stay[i] = last
        kept = np.array(stay, dtype=np.int64)
        now = replace(
            self,
            canvas=self.canvas.take(kept),
            rows=tuple(self.rows[i] for i in stay),
            nfe=self.nfe[kept],
            canvases=self.canvases[kept],
            told=tuple(self.told[i] for i in stay),
            unsent=iter([*self.unsent, *ended]),
        )
        return now, kept

    def _output(self, i: int, reason: FinishReason, error: str | None) -> Output:
        row, now = self.rows[i], self.timings
        prompt = row.prompt if self.nfe[i] else 0.0  # that of a step that was cut does not count
        answer = row.answers.ended(self.canvas, i, reason)
        commits = row.commits[: self.told[i]]
        return Output(
            text=answer.text,
            token_ids=answer.token_ids,
            finish_reason=answer.reason,
            nfe=int(self.nfe[i]),
            canvases=int(self.canvases[i]),
            slots=sum(len(c.positions) - len(c.remasked) for c in commits),
            answer_tokens=answer.count,
            timings=Timings(now.total - row.joined.total, now.forward - row.joined.forward, prompt),
            history=commits if row.config.history else None,
            error=error,
        )
