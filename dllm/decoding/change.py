"""Change that a step makes, on the host: the next canvas, and the events that tell of it."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass, replace

import numpy as np

from dllm.decoding.canvas import Array, Canvas
from dllm.decoding.result import NOTHING, Result
from dllm.decoding.rows import Row
from dllm.output import Commit, FinishReason


@dataclass(frozen=True, slots=True)
class CanvasChange:
    """One step's writes, and what stands behind them.

    row, place, pos, token [m]: row and index among the candidates of every write, row by row, its
    position and its token (below 0: masked again); was_known [m]. ids, known, changed [B, T]: the
    canvas afterwards, and where it is another. gained [B]: tokens more than before.
    """

    row: Array
    place: Array
    pos: Array
    token: Array
    was_known: Array
    ids: Array
    known: Array
    changed: Array
    gained: Array

    @classmethod
    def of(cls, canvas: Canvas, pos: Array, result: Result, mask_id: int) -> CanvasChange:
        """Of the positions pos [B, K] that the device looked at."""
        row, place = (result.code != NOTHING).nonzero()
        where, token = pos[row, place], result.code[row, place]
        known_now, was_known = token >= 0, canvas.known[row, where]
        ids, known = canvas.ids.copy(), canvas.known.copy()
        ids[row, where] = np.where(known_now, token, mask_id)
        known[row, where] = known_now
        changed = np.zeros_like(known)
        changed[row, where] = True
        gain = known_now.astype(np.int64) - was_known
        gained = np.bincount(row, weights=gain, minlength=len(ids)).astype(np.int64)
        return cls(row, place, where, token, was_known, ids, known, changed, gained)

    def commits(
        self,
        rows: Sequence[Row],
        nfe: Array,
        conf: Array,
        settled: Array,
        without: Container[int],
    ) -> list[tuple[int, Commit]]:
        """One event for each row (index) that moved, but for those `without`."""
        ends = np.searchsorted(self.row, np.arange(len(rows)), side="right").tolist()
        pos, token = self.pos.tolist(), self.token.tolist()
        sure, known = conf[self.row, self.place].tolist(), self.was_known.tolist()
        made, begin = [], 0
        for i, end in enumerate(ends):
            span, begin = range(begin, end), end
            if not span or i in without:
                continue
            new = [m for m in span if not known[m]]
            edited = [m for m in span if known[m] and token[m] >= 0]
            commit = Commit(
                row=rows[i].number,
                nfe=int(nfe[i]),
                positions=[pos[m] for m in new],
                token_ids=[token[m] for m in new],
                confidences=[sure[m] for m in new],
                remasked=[pos[m] for m in span if token[m] < 0],
                replaced=[pos[m] for m in edited],
                replaced_ids=[token[m] for m in edited],
                settled=int(settled[i]),
            )
            made.append((i, commit))
        return made


@dataclass(frozen=True, slots=True)
class Moved:
    """What a step makes of the batch: the next canvas, the commits by row (index), forwards and
    canvases of each row [B], which rows (indices) end for which reason, and what went wrong.
    """

    canvas: Canvas
    nfe: Array
    canvases: Array | int
    commits: list[tuple[int, Commit]]
    reasons: dict[int, FinishReason]
    errors: dict[int, str]

    def then(self, later: Moved, moves: Array) -> Moved:
        """What two steps make of it, of which the later one is that of the rows `moves` [B]."""
        reasons = {i: reason for i, reason in later.reasons.items() if moves[i]}
        errors = {i: error for i, error in later.errors.items() if moves[i]}
        commits = [(i, commit) for i, commit in later.commits if moves[i]]
        return replace(
            later,
            commits=self.commits + commits,
            reasons=self.reasons | reasons,
            errors=self.errors | errors,
        )


def prefilled_commit(canvas: Canvas, i: int, number: int) -> list[Commit]:
    """The answer tokens that stand in row `i` from the start, as an event of forward 0, if any."""
    (where,) = (canvas.answer[i] & ~canvas.generated[i]).nonzero()
    if not len(where):
        return []
    ids, sure = canvas.ids[i, where].tolist(), [1.0] * len(where)
    settled = int(canvas.first_masked()[i])
    return [Commit(number, 0, where.tolist(), ids, sure, settled=settled)]
