"""Planners and stop rules driven by hand: canvases, made-up predictions, and a loop over both."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dllm.decoding.canvas import Array, Canvas, Windows, positions
from dllm.decoding.state import HostState
from dllm.samplers.candidates import Candidates
from dllm.samplers.protocols import DeviceCanvas, Planner
from tests.samplers.views import keys

MASK = 5
EOS = 1


@dataclass(frozen=True)
class Outlook:
    """A canvas and what a model that never changes its mind predicts: token and conf [B, T]."""

    canvas: Canvas
    token: Tensor
    conf: Tensor

    def only(self, row: int) -> Outlook:
        """Row `row` by itself, as short as it is."""
        return self.take([row])

    def take(self, rows: Sequence[int] | Array) -> Outlook:
        """Those of `rows` [n] (indices), as wide as the longest of them."""
        canvas = self.canvas.take(rows)
        size, index = canvas.ids.shape[1], torch.as_tensor(rows)
        return Outlook(canvas, self.token[index, :size], self.conf[index, :size])

    def view(self, canvas: Canvas, windows: Windows, **overrides: Any) -> Candidates:
        """All masked positions of the windows; padding holds NaN."""
        pos, valid = map(torch.from_numpy, positions(canvas.masked & windows.contains(canvas.pos)))
        at = torch.arange(len(pos))[:, None], pos.clamp(max=canvas.ids.shape[1] - 1)
        prompt, length = torch.from_numpy(canvas.prompt), torch.from_numpy(canvas.length)
        zero, conf = torch.zeros_like(prompt), self.conf[at].masked_fill(~valid, torch.nan)
        token = self.token[at]
        given: dict[str, Any] = {
            "pos": pos,
            "valid": valid,
            "token": token,
            "conf": conf,
            "log1m": torch.log1p(-conf.double()).float(),
            "ends": torch.isin(token, torch.tensor([1, 2])),
            "start": torch.from_numpy(windows.start.min(1)),
            "end": torch.from_numpy(windows.end.max(1)),
            "window_masked": valid.sum(1),
            "window_step": zero,
            "step": zero,
            "prompt": prompt,
            "length": length,
            "masked": torch.from_numpy(canvas.masked.sum(1)),
            "fillable": torch.from_numpy(canvas.generated.sum(1)),
            "row": torch.from_numpy(canvas.row),
            "key": keys(0, canvas.row),
            "width": int((windows.end - windows.start).max()),
            "best": token,
            "best_conf": conf,
        }
        return Candidates(**(given | overrides))


def canvas_of(prompt: Sequence[int], *rows: str) -> Canvas:
    """One row per text: `.` is masked, `g` a prefilled token 3, `x` a committed one, `E` a
    committed end of text, a digit the committed token itself.
    """
    given = [[(i, [3]) for i, mark in enumerate(row) if mark == "g"] for row in rows]
    canvas = Canvas.from_prompts([prompt] * len(rows), [len(r) for r in rows], MASK, given)
    for b, row in enumerate(rows):
        for i, mark in enumerate(row, start=len(prompt)):
            if mark not in ".g":
                canvas = committed_at(canvas, b, [i], {"x": 3, "E": EOS}.get(mark) or int(mark))
    return canvas


def committed_at(canvas: Canvas, row: int, where: Iterable[int], token: int = 3) -> Canvas:
    """The canvas with `token` committed at these positions of a row."""
    ids, known = canvas.ids.copy(), canvas.known.copy()
    ids[row, list(where)], known[row, list(where)] = token, True
    return canvas.stepped(ids, known)


def on_device(canvas: Canvas) -> DeviceCanvas:
    """What a stop rule sees of it."""
    names = (f.name for f in fields(DeviceCanvas))
    return DeviceCanvas(*(torch.from_numpy(getattr(canvas, name)) for name in names))


def random_outlook(seed: int, rows: int, most: int = 24) -> Outlook:
    """Ragged prompts and answers, prefilled tokens here and there, confidences that tie."""
    rng = np.random.default_rng(seed)
    prompts = [[3] * int(rng.integers(0, 4)) for _ in range(rows)]
    sizes = rng.integers(1, most + 1, rows).tolist()
    given = [[(i, [3]) for i in range(1, size) if rng.random() < 0.1] for size in sizes]
    canvas = Canvas.from_prompts(prompts, sizes, MASK, given)
    conf = rng.choice([0.1, 0.25, 0.3, 0.5, 0.7, 0.9, 0.95], canvas.ids.shape)
    token = rng.choice([3, 4, 6, 7], canvas.ids.shape, p=[0.3, 0.3, 0.2, 0.2])
    return Outlook(canvas, torch.from_numpy(token), torch.from_numpy(conf).float())


def started(planner: Planner, canvas: Canvas) -> HostState:
    """The state of a planner before the first step."""
    return HostState.fresh(planner.fields, len(canvas.row), canvas.ids.shape[1])


def narrowed(planner: Planner, view: Candidates, windows: Windows, state: HostState) -> Windows:
    """The windows that a planner leaves after the forward, its state brought back to the host."""
    if not planner.narrows:
        return windows
    assert windows.start.shape[1] == 1
    sent = {name: torch.from_numpy(array) for name, array in state.values.items()}
    start, end = planner.narrow(view, sent)
    for name, f in state.fields.items():
        state.values[name] = sent[name].numpy().astype(f.dtype)
    assert sent.keys() == state.fields.keys()
    return Windows(start.numpy(), end.numpy())


def plan(planner: Planner, outlook: Outlook, state: HostState) -> tuple[Windows, Windows]:
    """The windows before and after a forward on the outlook's canvas."""
    windows = planner.windows(outlook.canvas, state.values)
    return windows, narrowed(planner, outlook.view(outlook.canvas, windows), windows, state)


def decode(
    planner: Planner, outlook: Outlook, threshold: float = 1.0, asks: int = 1
) -> list[tuple[Canvas, Windows, Windows]]:
    """Every step of a run: the canvas as the planner saw it, its windows, and the narrowed ones.

    A step commits what has confidence `threshold`, and the best of the first window with a masked
    position. Rows that are full leave. asks: how often a step asks for windows. The rows of the
    canvases are numbered as they stand in the outlook's.
    """
    whole, steps = outlook.canvas, list[tuple[Canvas, Windows, Windows]]()
    assert whole.row.tolist() == [*range(len(whole.row))] or len(whole.row) == 1
    now, state = outlook, started(planner, whole)
    while len(now.canvas.row):
        canvas = now.canvas
        for _ in range(asks):
            windows = planner.windows(canvas, state.values)
        view = now.view(canvas, windows)
        narrow = narrowed(planner, view, windows, state)
        steps.append((canvas, windows, narrow))
        inside = torch.from_numpy(narrow.contains(view.pos.numpy()))
        commit = view.valid & inside & (view.conf >= threshold)
        for b in range(len(canvas.row)):
            first = int(canvas.first_masked()[b])
            each = narrow.each(canvas.pos)[b] & canvas.masked[b]
            masked = [w.nonzero()[0].tolist() for w in each if w.any()]
            block = min(masked, key=lambda h: h[0])
            best = max(block, key=lambda i: (float(now.conf[b, i]), -i))
            assert best >= first
            commit[b] |= view.valid[b] & (view.pos[b] == best)
        ids, known = canvas.ids.copy(), canvas.known.copy()
        row, column = (i.numpy() for i in commit.nonzero(as_tuple=True))
        where = view.pos.numpy()[row, column]
        ids[row, where], known[row, where] = view.token.numpy()[row, column], True
        now = Outlook(canvas.stepped(ids, known), now.token, now.conf)
        keep = now.canvas.masked.any(1).nonzero()[0]
        now = now.take(keep)
        state.take(keep, now.canvas.ids.shape[1])
        assert len(steps) <= whole.ids.size
    return steps
