"""State of a request between two steps, so that an interrupt loses nothing that was told."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from dllm.decoding.answers import Answers
from dllm.decoding.canvas import Canvas
from dllm.output import Commit, Event, Finished, FinishReason, Timings


@dataclass(frozen=True, slots=True)
class Standing:
    """The active rows as their last whole step left them: all that their Outputs are made of.

    A step works on copies and puts a new one in place of the old in a single assignment. Ctrl-C on
    whatever line finds a step made, its events waiting to be told, or not begun.

    canvas: of the active rows; nobody changes it. By row: active, the index in the request; nfe and
    canvases, as in `Output`; commits, all so far. unsent: the events that are still to be told, an
    iterator that `yield from` empties: what is told is no longer in it.
    """

    canvas: Canvas
    active: Sequence[int]
    nfe: Sequence[int]
    canvases: Sequence[int]
    commits: Sequence[Sequence[Commit]]
    timings: Timings
    unsent: Iterator[Event]

    @classmethod
    def at_start(cls, canvas: Canvas, events: Sequence[Event]) -> Standing:
        """Before the first step; `events` tell of it."""
        rows = range(len(canvas.row))
        zeros = [0 for _ in rows]
        return cls(canvas, rows, zeros, zeros, [() for _ in rows], Timings(0, 0), iter(events))

    def stepped(
        self,
        canvas: Canvas,
        nfe: Sequence[int],
        canvases: Sequence[int],
        commits: Sequence[Commit],
        timings: Timings,
    ) -> Standing:
        """One step later; `commits` are what it has to tell."""
        own = [[commit for commit in commits if commit.row == row] for row in self.active]
        return Standing(
            canvas=canvas,
            active=self.active,
            nfe=nfe,
            canvases=canvases,
            commits=[(*old, *new) for old, new in zip(self.commits, own, strict=True)],
            timings=timings,
            unsent=iter([*self.unsent, *commits]),
        )

    def finished(
        self, reasons: Sequence[FinishReason | None], answers: Answers, history: bool
    ) -> Standing:
        """Without the rows that have a reason to end; their Outputs are still to be told."""
        ended = [
            Finished(
                self.active[i],
                answers.output(
                    self.canvas,
                    i,
                    reason,
                    list(self.commits[i]),
                    nfe=self.nfe[i],
                    canvases=self.canvases[i],
                    timings=self.timings,
                    history=history,
                ),
            )
            for i, reason in enumerate(reasons)
            if reason is not None
        ]
        stay = [i for i, reason in enumerate(reasons) if reason is None]
        rows = torch.tensor(stay, dtype=torch.long, device=self.canvas.row.device)
        canvas = self.canvas.copy()
        canvas.keep(rows)
        return replace(
            self,
            canvas=canvas,
            active=[self.active[i] for i in stay],
            nfe=[self.nfe[i] for i in stay],
            canvases=[self.canvases[i] for i in stay],
            commits=[self.commits[i] for i in stay],
            unsent=iter([*self.unsent, *ended]),
        )
