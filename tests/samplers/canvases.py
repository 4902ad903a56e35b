"""Planners and stop rules driven by hand: canvases, made-up predictions, and a loop over both."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dllm.decoding.canvas import Canvas, Windows, positions
from dllm.samplers.candidates import Candidates
from dllm.samplers.protocols import Planner, State

MASK = 5


@dataclass(frozen=True)
class Outlook:
    """A canvas and what a model that never changes its mind predicts: token and conf [B, T]."""

    canvas: Canvas
    token: Tensor
    conf: Tensor

    def only(self, row: int) -> Outlook:
        """Row `row` by itself, as short as it is."""
        canvas = self.canvas.take(torch.tensor([row]))
        canvas.keep(torch.tensor([0]))
        size = canvas.ids.shape[1]
        return Outlook(canvas, self.token[row : row + 1, :size], self.conf[row : row + 1, :size])

    def view(self, canvas: Canvas, windows: Windows, **overrides: Any) -> Candidates:
        """All masked positions of the windows; padding holds NaN."""
        pos, valid = positions(canvas.masked & windows.contains(canvas.pos))
        row, zero = torch.arange(len(pos))[:, None], torch.zeros_like(canvas.prompt)
        conf = self.conf[row, pos].masked_fill(~valid, torch.nan)
        token = self.token[row, pos]
        fields: dict[str, Any] = {
            "pos": pos,
            "valid": valid,
            "token": token,
            "conf": conf,
            "log1m": torch.log1p(-conf.double()).float(),
            "ends": torch.isin(token, torch.tensor([1, 2])),
            "start": windows.start.amin(1),
            "end": windows.end.amax(1),
            "window_masked": valid.sum(1),
            "window_step": zero,
            "step": zero,
            "prompt": canvas.prompt,
            "length": canvas.length,
            "row": canvas.row,
            "filled": 1 - canvas.masked.sum(1) / (canvas.length - canvas.prompt),
            "best": token,
            "best_conf": conf,
        }
        return Candidates(**(fields | overrides))


def random_outlook(seed: int, rows: int, most: int = 24) -> Outlook:
    """Ragged prompts and answers, prefilled tokens here and there, confidences that tie."""
    rng = np.random.default_rng(seed)
    prompts = [[3] * int(rng.integers(0, 4)) for _ in range(rows)]
    canvas = Canvas.from_prompts(prompts, most, MASK)
    canvas.shorten(canvas.prompt + torch.from_numpy(rng.integers(1, most + 1, rows)))
    given = torch.from_numpy(rng.random(canvas.ids.shape) < 0.1) & canvas.generated
    given[torch.arange(rows), canvas.prompt] = False
    canvas.generated, canvas.known = canvas.generated & ~given, canvas.known | given
    conf = rng.choice([0.1, 0.25, 0.3, 0.5, 0.7, 0.9, 0.95], canvas.ids.shape)
    token = rng.choice([3, 4, 6, 7], canvas.ids.shape, p=[0.3, 0.3, 0.2, 0.2])
    return Outlook(canvas, torch.from_numpy(token), torch.from_numpy(conf).float())


def plan(planner: Planner, outlook: Outlook, state: State) -> tuple[Windows, Windows]:
    """The windows before and after a forward on the outlook's canvas."""
    windows = planner.windows(outlook.canvas, state)
    view = outlook.view(outlook.canvas, windows)
    return windows, planner.narrow(view, windows, state)


def decode(
    planner: Planner, outlook: Outlook, threshold: float = 1.0, asks: int = 1
) -> list[tuple[Canvas, Windows, Windows]]:
    """Every step of a run: the canvas as the planner saw it, its windows, and the narrowed ones.

    A step commits what has confidence `threshold`, and the best of the first window with a masked
    position. Rows that are full leave. asks: how often a step asks for windows.
    """
    whole, state, steps = outlook.canvas, dict[str, Tensor](), []
    canvas = whole.take(torch.arange(len(whole.row)))
    token, conf = outlook.token, outlook.conf
    origin = torch.arange(len(whole.row))
    while len(canvas.row):
        for _ in range(asks):
            windows = planner.windows(canvas, state)
        now = Outlook(canvas, token, conf)
        view = now.view(canvas, windows)
        narrow = planner.narrow(view, windows, state)
        seen = canvas.take(torch.arange(len(canvas.row)))
        seen.row = origin
        steps.append((seen, windows, narrow))
        commit = view.valid & narrow.contains(view.pos) & (view.conf >= threshold)
        for b in range(len(canvas.row)):
            first = int(canvas.first_masked()[b])
            each = narrow.each(canvas.pos)[b] & canvas.masked[b]
            masked = [w.nonzero()[:, 0].tolist() for w in each if w.any()]
            block = min(masked, key=lambda h: h[0])
            best = max(block, key=lambda i: (float(conf[b, i]), -i))
            assert best >= first
            commit[b] |= view.valid[b] & (view.pos[b] == best)
        canvas.commit(view.pos, view.token, commit)
        keep = canvas.masked.any(1).nonzero()[:, 0]
        canvas.keep(keep)
        size = canvas.ids.shape[1]
        token, conf, origin = token[keep, :size], conf[keep, :size], origin[keep]
        state = {key: value[keep] for key, value in state.items()}
        assert len(steps) <= whole.ids.numel()
    return steps
