"""Speculation over canvases: a loop around the step that computes guessed canvases along.

A row whose next canvas was guessed goes on from its logits without a forward, while the others
stand still. It costs nothing where no row has a speculator.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from dllm.decoding.canvas import Array, Canvas, widened
from dllm.decoding.change import Moved
from dllm.decoding.forward import Prepared
from dllm.decoding.planning import Planned
from dllm.decoding.result import Result
from dllm.decoding.rows import Row
from dllm.decoding.step import RowBatch
from dllm.decoding.transfer import send


@dataclass(frozen=True, slots=True)
class Guess:
    """What the canvas of row `row` (index) may become: ids and known [T]."""

    row: int
    ids: Array
    known: Array


class SpeculatingBatch(RowBatch):
    """A batch in which rows may guess ahead; without such rows it is a `RowBatch`."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.guesses: list[Guess] = []

    def _take(self, rows: Array, canvas: Canvas, own: Sequence[Row]) -> None:
        super()._take(rows, canvas, own)
        place = {source: i for i, source in enumerate(rows.tolist())}
        self.guesses = [
            replace(guess, row=place[guess.row]) for guess in self.guesses if guess.row in place
        ]

    def _advance(self) -> Moved:
        """One forward; each row moves once from it, and again wherever it computed a guess that the
        row has become.
        """
        if not self.decider.methods.speculators:
            return super()._advance()
        count = len(self.standing.rows)
        computed, row = self._stacked(self.standing.canvas)
        planned = self.plan(computed, row)
        prepared = self.forward.prepare(
            computed, planned.windows, planned.want, self.counters.step[row], row
        )
        logits = self._logits(computed, prepared)
        nfe = self.standing.nfe + prepared.computed[:count]
        which, own = np.arange(count), planned.of(count)
        moved = self._pass(which, own, prepared, logits, nfe, None)
        while len(row) > count:
            running = (which >= 0) & ~np.isin(np.arange(count), list(moved.reasons))
            which = self._found(computed, prepared.want, row, moved.canvas, running)
            if (which < 0).all():
                break
            step = self._pass(which, own, prepared, logits, nfe, moved)
            moved = moved.then(step, which >= 0)
        return replace(moved, canvases=np.bincount(row, minlength=count))

    def _stacked(self, canvas: Canvas) -> tuple[Canvas, Array]:
        """The canvases of the rows, then all guesses; and the row [R] of each."""
        count, size = canvas.ids.shape
        row = np.array([*range(count), *(guess.row for guess in self.guesses)], dtype=np.int64)
        if len(row) == count:
            return canvas, row
        stacked = canvas.take(row, size)
        # guesses from before a row was shortened are wider, those from before one joined narrower
        mask = self.model.spec.mask_id
        ids = [widened(guess.ids[None, :size], size, mask) for guess in self.guesses]
        known = [widened(guess.known[None, :size], size, True) for guess in self.guesses]
        return stacked.stepped(
            np.concatenate([canvas.ids, *ids]), np.concatenate([canvas.known, *known])
        ), row

    def _logits(self, computed: Canvas, prepared: Prepared) -> torch.Tensor:
        """[R, K, V] of all canvases."""
        count = len(self.standing.rows)
        arrays = prepared.arrays() | {"prompt": computed.prompt}
        if len(computed.row) > count:
            arrays["guesses"] = computed.ids[count:]
        sent = send(arrays, self.model.device)
        ids = self.shown[:, :-1]
        if "guesses" in sent:
            ids = torch.cat([ids, sent["guesses"]])
        logits = self.forward.run(prepared, sent, ids, sent["prompt"])
        self.forward.settle_time()
        return logits

    def _pass(
        self,
        which: Array,
        planned: Planned,
        prepared: Prepared,
        logits: torch.Tensor,
        nfe: Array,
        before: Moved | None,
    ) -> Moved:
        """The step of all rows that have a computed canvas `which` [B] (-1: they stand still)."""
        canvas = self.standing.canvas if before is None else before.canvas
        moves = which >= 0
        noted, counters, held = self.memory.noted(), self.counters, (self.open, self.held)
        changed = self.forward.changed
        if before is not None:
            planned = self.plan(canvas)
        size = canvas.ids.shape[1]
        want = prepared.want[which] & moves[:, None]
        pos = np.where(moves[:, None], prepared.pos[which], size)
        arrays = self.asked(canvas, planned.windows, want, pos)
        sent = send(arrays | {"which": np.maximum(which, 0)}, self.model.device)
        result = self.decide(sent, logits[sent["which"]], planned.windows)
        planned = replace(planned, errors={i: e for i, e in planned.errors.items() if moves[i]})
        moved = self.follow(canvas, planned, pos, result, nfe)
        self.memory.put_back(noted, moves)
        self.counters = self.counters.where(moves, counters)
        self.open, self.held = (
            np.where(moves, self.open, held[0]),
            self.held.where(moves, held[1]),
        )
        if before is not None:
            self.forward.changed = self.forward.changed | changed
        self._guess(moves, moved.canvas, pos, result)
        return moved

    def _guess(self, moves: Array, canvas: Canvas, pos: Array, result: Result) -> None:
        """Guess anew for the rows that have moved to `canvas`."""
        assert result.ahead is not None
        assert result.token is not None
        self.guesses = [guess for guess in self.guesses if not moves[guess.row]]
        for i in moves.nonzero()[0].tolist():
            ahead = result.ahead[i]
            for n in range(1, int(ahead.max(initial=0)) + 1):
                if not (ahead == n).any():
                    continue
                which = (ahead > 0) & (ahead <= n)
                ids, known = canvas.ids[i].copy(), canvas.known[i].copy()
                ids[pos[i, which]] = result.token[i, which]
                known[pos[i, which]] = True
                if (canvas.generated[i] & ~known).any():
                    self.guesses.append(Guess(i, ids, known))

    def _found(
        self, computed: Canvas, want: Array, row: Array, canvas: Canvas, running: Array
    ) -> Array:
        """[B] the computed canvas that each `running` [B] row has become, -1 for none."""
        count = len(canvas.row)
        noted = self.memory.noted()
        planned = self.plan(canvas)
        self.memory.put_back(noted, np.zeros(count, dtype=np.bool_))
        found = np.full(count, -1)
        pairs = (computed.ids, canvas.ids), (computed.known, canvas.known), (want, planned.want)
        equal = np.logical_and.reduce([(one == two[row]).all(1) for one, two in pairs])
        equal &= computed.length == canvas.length[row]  # a stop rule may have shortened the row
        equal[:count] = False  # a row's own canvas is behind it
        found[row[equal]] = equal.nonzero()[0]
        return np.where(running, found, -1)
