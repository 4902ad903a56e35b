"""The device's half of a step: score the logits, let the rules choose, write, pack the result.

Every shape is known beforehand and no value is looked at: the host reads one tensor at the end.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dllm.decoding.canvas import Array, Canvas, Windows
from dllm.decoding.memory import ComponentStates
from dllm.decoding.result import NOTHING, REOPENED, Made
from dllm.decoding.rows import Counters
from dllm.samplers.candidates import (
    Candidates,
    Decoded,
    divergence,
    per_window,
    score,
)
from dllm.samplers.protocols import DeviceCanvas
from dllm.samplers.rule import CommitRule, commits
from dllm.samplers.transforming import State, Transforming

ROW = ("step", "prompt", "length", "masked", "fillable", "row", "key")
WINDOW = ("start", "end", "window_masked", "window_step", "window_start")


class Decider:
    """Decides for the rows of one batch; made anew when rows join or leave.

    blocks: how many numbers come back for each position; names: of `Result.numbers`, which follow.
    plain: no component looks at more than the windows.
    """

    def __init__(self, memory: ComponentStates, mask_id: int) -> None:
        assert memory.methods is not None
        self.methods, self.states, self.mask_id = memory.methods, memory, mask_id
        names: list[str] = []
        if self.methods.stop_rules:
            names.append("length")
        if self.methods.remasks.any():
            names.append("open")
        if self.methods.narrows:
            names += ["start", "end"]
            for i, group in enumerate(self.methods.planners):
                if group.part.narrows:
                    names += [f"planner{i}.{name}" for name in group.part.fields]
        self.names = tuple(names)
        self.blocks = 4 if self.methods.speculators else 2
        self.plain = not (self.methods.narrows or self.methods.stop_rules)

    # --- on the host -----------------------------------------------------------------------------

    def arrays(
        self,
        canvas: Canvas,
        windows: Windows,
        counters: Counters,
        want: Array,
        pos: Array,
    ) -> dict[str, Array]:
        """What the device needs to know of this step, by name.

        want [B, T], pos [B, K]: the positions whose logits it gets.
        """
        methods, masked = self.methods, canvas.masked
        columns = {
            "step": counters.step,
            "prompt": canvas.prompt,
            "length": canvas.length,
            "masked": masked.sum(1),
            "fillable": canvas.generated.sum(1),
            "row": canvas.row,
            "key": methods.key,
        }
        wide = [windows.start, windows.end, counters.window_masked, counters.window_step]
        if methods.narrows:
            wide.append(counters.window_start)
        arrays = {
            "pos": pos,
            "rows": np.stack([columns[name] for name in ROW]),
            "windows": np.stack(wide),
        }
        if windows.start.shape[1] == 1:
            arrays["windows"] = arrays["windows"][..., 0]
        elif windows.forced is not None:  # else every window that has a candidate
            filled = ((want & masked)[:, None] & windows.each(canvas.pos)).any(2)
            arrays["forced"] = filled & ((filled.cumsum(1) == 1) | windows.forced)
        if methods.looks_back.any():
            known = np.pad(canvas.known, ((0, 0), (0, 1)), constant_values=True)
            arrays["back"] = np.take_along_axis(known, pos, 1)
        if methods.stop_rules:
            arrays["known"], arrays["generated"] = canvas.known, canvas.generated
        for i, state in enumerate(self.states.planners):
            if methods.planners[i].part.narrows and state.values:
                columns = {name: state.values[name].astype(np.int64) for name in state.fields}
                arrays[f"planner{i}"] = np.stack(list(columns.values()))
        return arrays

    # --- on the device ---------------------------------------------------------------------------

    def decide(self, sent: Mapping[str, Tensor], logits: Tensor, ids: Tensor, width: int) -> Tensor:
        """Choose from logits [B, K, V], write to ids [B, T + 1], pack what the host must know.

        sent: the `arrays`. width: the longest window's. Position T of ids takes what is written
        for padding. int32 [B, 2 * K + C]: see `Result`.
        """
        row = dict(zip(ROW, sent["rows"].unbind(), strict=True))
        window = dict(zip(WINDOW, sent["windows"].unbind(), strict=False))
        numbers: dict[str, Tensor] = {}
        if self.plain and window["start"].ndim == 1:  # all that is seen may be chosen
            view = whole = self._scored(sent, logits, row | window, ids, width)
        else:
            span = {"start": row["prompt"], "end": row["length"]}
            span |= {"window_masked": row["masked"], "window_step": row["step"]}
            whole = self._scored(sent, logits, row | span, ids, width)
            if self.methods.narrows:
                window = self._narrowed(whole, window, sent, numbers)
            view = per_window(whole, window)
        count = 1 if window["start"].ndim == 1 else window["start"].shape[1]
        made = self._selected(view, sent.get("forced"), count)
        return self._written(whole, made, sent, ids, numbers)

    def _scored(
        self,
        sent: Mapping[str, Tensor],
        logits: Tensor,
        row: Mapping[str, Any],
        ids: Tensor,
        width: int,
    ) -> Candidates:
        """All positions whose logits were computed, a view row per canvas row."""
        needs, pos = self.methods.needs, sent["pos"]
        seen = valid = pos < ids.shape[1] - 1
        if "back" in sent:
            valid = seen & ~sent["back"]
        transforms = [
            Transforming(group.part, state.values, group.index)
            for group, state in zip(self.methods.transforms, self.states.transforms, strict=True)
        ]
        fields: dict[str, Any] = score(
            logits, pos, valid, row["key"], row["step"], self.methods.proposal, needs, transforms
        )
        if "kl" in needs:
            fields["kl"] = divergence(fields["logits"], pos, seen, self.states.kl)
        if "logits" not in needs:
            fields.pop("logits", None)
        decoded = None
        if "back" in sent:
            token = ids.gather(1, pos)
            decoded = Decoded(pos, seen & sent["back"], fields["best_conf"], token)
        return Candidates(
            pos=pos,
            valid=valid,
            **fields,
            **row,
            width=width,
            decoded=decoded,
        )

    def _narrowed(
        self,
        whole: Candidates,
        window: dict[str, Tensor],
        sent: Mapping[str, Tensor],
        numbers: dict[str, Tensor],
    ) -> dict[str, Tensor]:
        """The windows [B, N] that planners leave, with counters begun anew where one is new."""
        window = {name: t if t.ndim > 1 else t[:, None] for name, t in window.items()}
        start, end = window["start"], window["end"]
        before = window["window_start"]
        each = between(whole.pos, start, end)
        own_window: dict[str, Any] = {
            name: t[:, 0] for name, t in window.items() if t is not before
        }
        view = replace(whole, valid=whole.valid & each.any(1), **own_window)
        for i, group in enumerate(self.methods.planners):
            if not group.part.narrows:
                continue
            fields = group.part.fields
            state: State = {}
            if fields:
                state = dict(zip(fields, sent[f"planner{i}"].unbind(), strict=True))
            for name, f in fields.items():
                if f.dtype == "bool":
                    state[name] = state[name].bool()
            own = view
            if group.member is not None:
                own = replace(view, valid=view.valid & group.member[:, None])
            first, last = (t[:, None] for t in group.part.narrow(own, state))
            if group.member is not None:
                member = group.member[:, None]
                first = torch.where(member, first, start[:, :1])
                last = torch.where(member, last, end[:, :1])
            start = torch.cat([first, start[:, 1:]], 1)  # a planner that narrows has one window
            end = torch.cat([last, end[:, 1:]], 1)
            numbers |= {f"planner{i}.{name}": t for name, t in state.items()}
        numbers["start"], numbers["end"] = start[:, 0], end[:, 0]
        masked = (whole.valid[:, None] & between(whole.pos, start, end)).sum(2)
        new = (before != start) | (window["window_masked"] == 0)
        return {
            "start": start,
            "end": end,
            "window_masked": torch.where(new, masked, window["window_masked"]),
            "window_step": window["window_step"].masked_fill(new, 0),
        }

    def _selected(self, view: Candidates, forced: Tensor | None, count: int) -> Made:
        """What the rules choose in the view [B * N, ...] of N = `count` windows, by row [B, K].

        forced [B, N]: windows that must commit something (None: all that hold a candidate).
        """
        must = None if forced is None else forced.flatten()
        made: Made | None = None
        for group, state in zip(self.methods.rules, self.states.rules, strict=True):
            own, member = view, None
            if state.fields:
                own = view.remembering(state.values)
            if group.member is not None:
                member = group.member[:, None]
                if count > 1:
                    member = member.repeat_interleave(count, dim=0)
                if getattr(group.part, "by_row", False):
                    own = replace(own, valid=own.valid & member)
            mine = self._made(group.part, own, must, count)
            if member is not None:  # a rule sees all rows, which costs nothing, and has its own
                mine = mine.only(member)
            mine = mine.by_row(count)
            made = mine if made is None else made.joined(mine)
        assert made is not None
        return made

    def _made(self, rule: CommitRule, view: Candidates, forced: Tensor | None, count: int) -> Made:
        """What one rule chooses in the view."""
        choice, back = rule.select(view), view.decoded
        chosen = commits(view, choice, forced)
        reopened, edited = choice.remask, choice.replace
        return Made(
            chosen,
            view.token if choice.token is None else choice.token,
            None if reopened is None or back is None else reopened & back.valid,
            None if edited is None or back is None else edited.masked_fill(~back.valid, -1),
            choice.open,
            self._ahead(rule, view, chosen, count),
        )

    def _ahead(
        self, rule: CommitRule, view: Candidates, chosen: Tensor, count: int
    ) -> Tensor | None:
        """[B * N, K] the first of the speculators' growing sets that holds each candidate; NOTHING
        where none does.
        """
        ahead: Tensor | None = None
        for group in self.methods.speculators:
            own = torch.full_like(view.pos, NOTHING)
            for n, each in enumerate(group.part.drafts(rule, view, chosen), 1):
                own = torch.where(each & view.valid & ~chosen & (own < 0), n, own)
            if group.member is not None:
                own = own.masked_fill(~group.member.repeat_interleave(count)[:, None], NOTHING)
            ahead = own if ahead is None else torch.maximum(ahead, own)
        return ahead

    def _written(
        self,
        whole: Candidates,
        made: Made,
        sent: Mapping[str, Tensor],
        ids: Tensor,
        numbers: dict[str, Tensor],
    ) -> Tensor:
        """Write the decision to ids [B, T + 1]; the packed result."""
        pos, behind = whole.pos, ids.shape[1] - 1
        write, token = made.chosen, made.token
        if made.edited is not None:
            write = write | (made.edited >= 0)
            token = torch.where(made.edited >= 0, made.edited, token)
        code = torch.where(write, token, NOTHING)
        if made.reopened is not None:
            code = code.masked_fill(made.reopened, REOPENED)
            write, token = write | made.reopened, token.masked_fill(made.reopened, self.mask_id)
        held = ids.gather(1, pos) if self.methods.stop_rules else None
        ids.scatter_(1, torch.where(write, pos, behind), token)
        if held is not None:
            code = self._stopped(whole, code, held, sent, ids, numbers)
        if made.open is not None:
            numbers["open"] = made.open
        extras = [numbers.get(name, torch.zeros_like(whole.row))[:, None] for name in self.names]
        if made.ahead is not None:
            extras = [made.ahead, whole.token, *extras]
        return torch.cat([code.int(), whole.conf.view(torch.int32), *(t.int() for t in extras)], 1)

    def _stopped(
        self,
        whole: Candidates,
        code: Tensor,
        held: Tensor,
        sent: Mapping[str, Tensor],
        ids: Tensor,
        numbers: dict[str, Tensor],
    ) -> Tensor:
        """Let stop rules fill or shorten rows; the code [B, K] of the step with what they filled.

        A row that is filled keeps the tokens it `held` [B, K]: none of them is masked again.
        """
        pos, behind, length = whole.pos, ids.shape[1] - 1, whole.length
        known = torch.nn.functional.pad(sent["known"], (0, 1), value=True)
        where = torch.where(code != NOTHING, pos, behind)
        known = known.scatter(1, where, code >= 0)[:, :-1]
        for group, state in zip(self.methods.stop_rules, self.states.stop_rules, strict=True):
            canvas = DeviceCanvas(ids[:, :-1], known, sent["generated"], whole.prompt, length)
            verdict = group.part.check(whole, canvas, state.values)
            if verdict.fill is not None and whole.best is not None:
                fill = verdict.fill if group.member is None else verdict.fill & group.member
                fill = fill[:, None]
                rest, kept = whole.valid & (code < 0) & fill, (code == REOPENED) & fill
                token = torch.where(kept, held, whole.best)
                ids.scatter_(1, torch.where(rest | kept, pos, behind), token)
                code = torch.where(rest, whole.best, code.masked_fill(kept, NOTHING))
            if verdict.length is not None:
                own = torch.minimum(verdict.length, length)
                length = own if group.member is None else torch.where(group.member, own, length)
        numbers["length"] = length
        return code


def between(pos: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """[B, N, K] which positions pos [B, K] lie in which window [start, end) [B, N]."""
    return (pos[:, None] >= start[..., None]) & (pos[:, None] < end[..., None])
