"""Where a step may commit: the windows of all rows, those of every planner in their places."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from dllm.decoding.canvas import Array, Canvas, Windows
from dllm.decoding.methods import Group
from dllm.decoding.state import HostState
from dllm.samplers.protocols import Planner


@dataclass(frozen=True, slots=True)
class Planned:
    """Where a step may commit, as the host knows it before the forward.

    windows [B, N]; want [B, T]: positions whose logits some component wants to see. errors: rows
    (indices) whose planner left them nothing to do.
    """

    windows: Windows
    want: Array
    errors: dict[int, str]

    def of(self, rows: int) -> Planned:
        """That of the first `rows` rows."""
        w = self.windows
        forced = None if w.forced is None else w.forced[:rows]
        return replace(
            self, windows=Windows(w.start[:rows], w.end[:rows], forced), want=self.want[:rows]
        )


def planner_windows(
    group: Group[Planner], state: HostState, canvas: Canvas, row: Array | None
) -> tuple[Array | None, Windows]:
    """Which canvases are a planner's own (None: all), and their windows.

    row [R]: the row that each canvas is of (None: they are the rows). The state of the rows
    follows; what more canvases of a row would make of it is forgotten.
    """
    if group.rows is None and row is None:
        return None, group.part.windows(canvas, state.values)
    row = np.arange(len(canvas.row)) if row is None else row
    own = np.isin(row, np.arange(len(row)) if group.rows is None else group.rows).nonzero()[0]
    values = {name: a[row[own]] for name, a in state.values.items()}
    windows = group.part.windows(canvas.take(own), values)
    rows = own == row[own]
    for name, new in values.items():
        state.values[name] = state.values[name].copy()
        state.values[name][own[rows]] = new[rows]
    return own, windows


def together(each: Sequence[tuple[Array | None, Windows]], count: int) -> Windows:
    """The windows of `count` canvases, those of each planner in their places."""
    width = max(windows.start.shape[1] for _, windows in each)
    start, end = np.zeros((2, count, width), dtype=np.int64)
    forced = np.ones((count, width), dtype=np.bool_)
    for own, windows in each:
        wide = windows.padded(width)
        start[own], end[own] = wide.start, wide.end
        if wide.forced is not None:
            forced[own] = wide.forced
    return Windows(start, end, forced)


def narrowed(windows: Windows, numbers: Mapping[str, Array]) -> Windows:
    """The windows with the start and end [B] of each row's first one that planners have left."""
    start, end = windows.start.copy(), windows.end.copy()
    start[:, 0], end[:, 0] = numbers["start"], numbers["end"]
    return Windows(start, end, windows.forced)
