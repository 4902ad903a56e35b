"""A batch of rows being decoded: rows join, step and leave.

A step asks the planners where, the cache policy what to compute, the model for logits, the rules
which tokens, the stop rules whether that is enough. This file knows no method.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch

from dllm.config import ConfigError, DecodeConfig
from dllm.decoding.answers import Answers, first_end
from dllm.decoding.canvas import Array, Canvas, Windows
from dllm.decoding.change import CanvasChange, Moved, prefilled_commit
from dllm.decoding.components import DecodingComponents, check_prefilled, encode_prefilled
from dllm.decoding.decide import Decider
from dllm.decoding.forward import Forward
from dllm.decoding.memory import ComponentStates
from dllm.decoding.methods import Methods
from dllm.decoding.planning import Planned, narrowed, planner_windows, together
from dllm.decoding.result import Result
from dllm.decoding.rows import Counters, DecodeRequest, Row
from dllm.decoding.standing import Standing
from dllm.decoding.transfer import receive, send
from dllm.errors import DllmError
from dllm.models.protocol import Model
from dllm.output import Event, FinishReason, Started, Timings
from dllm.samplers.noise import row_key
from dllm.text.codec import TextCodec

SHARED = ("cache", "cache_mib", "cfg_scale", "buckets")  # options that all rows of a batch have


class DecodeError(DllmError):
    """A request that cannot be decoded, or a model that answers with NaN."""


class RowBatch:
    """Rows in the places of a pool. Nothing of a row depends on the others.

    places, length: how many rows, and how many positions each, it can hold. The options in SHARED
    are the batch's; a request brings all others.
    """

    def __init__(
        self,
        model: Model,
        text: TextCodec | None,
        config: DecodeConfig,
        places: int,
        length: int,
    ) -> None:
        self.model, self.text, self.config = model, text, config
        self.places, self.length = places, length
        self.components: list[tuple[DecodeConfig, DecodingComponents]] = []
        policy = self._components(config).policy
        self.forward = Forward.of(model, policy, config, places, length)
        self.ids = torch.full((places, length + 1), model.spec.mask_id, device=model.device)
        self.counters = Counters.fresh(0)
        self.memory = ComponentStates()
        self.open = np.zeros(0, dtype=np.bool_)  # rows whose rule keeps its window open
        self.held = Windows(*np.zeros((2, 0, 1), dtype=np.int64))  # the windows of the last step
        self.number = 0  # of the next row
        self.seconds = 0.0
        self.whole = True  # no step was cut
        self.failed: list[str] = []  # what went wrong in rows that ended so
        self.standing = Standing.empty()

    @property
    def active(self) -> Sequence[int]:
        """Numbers of the rows that are being decoded."""
        return [row.number for row in self.standing.rows]

    @property
    def events(self) -> Iterator[Event]:
        """Events that were not told yet, each once."""
        return self.standing.unsent

    # --- rows that come and go -------------------------------------------------------------------

    def join(self, requests: Sequence[DecodeRequest]) -> list[int]:
        """Take the requests in, from the next step on; the numbers of their rows.

        ConfigError, DecodeError: one of them cannot be decoded here; then none is taken in.
        """
        before, spec = self.standing, self.model.spec
        if len(before.rows) + len(requests) > self.places:
            raise DecodeError(
                f"{len(requests)} rows more than {len(before.rows)}: this batch has "
                f"{self.places} places"
            )
        shared = [encode_prefilled(r.config.prefilled, self.text) for r in requests]
        stands = [[*own, *r.prefilled] for own, r in zip(shared, requests, strict=True)]
        for i, (request, own) in enumerate(zip(requests, stands, strict=True)):
            check_prefilled(self.number + i, own, request.config.max_new_tokens)
        numbers = range(self.number, self.number + len(requests))
        rows = [self._row(*pair) for pair in zip(numbers, requests, strict=True)]
        new = Canvas.from_prompts(
            [r.prompt for r in requests],
            [r.config.max_new_tokens for r in requests],
            spec.mask_id,
            stands,
            [n if r.row_id is None else r.row_id for n, r in zip(numbers, requests, strict=True)],
        )
        if new.ids.shape[1] > self.length:
            raise DecodeError(f"{new.ids.shape[1]} positions: this batch has {self.length} a row")
        events: list[Event] = [
            Started(row.number, list(r.prompt), r.config.max_new_tokens)
            for row, r in zip(rows, requests, strict=True)
        ]
        for i, row in enumerate(rows):
            events.extend(prefilled_commit(new, i, row.number))
        canvas = before.canvas.joined(new, spec.mask_id)
        was = np.arange(len(before.rows))
        self._take(np.concatenate([was, np.full(len(rows), -1)]), canvas, [*before.rows, *rows])
        self.number += len(rows)
        self.standing = before.joined(canvas, rows, events)
        return list(numbers)

    def cancel(self, number: int) -> None:
        """End the row `number` with what is committed; nothing if it has ended."""
        for i, row in enumerate(self.standing.rows):
            if row.number == number:
                now, kept = self.standing.finished({i: "interrupted"}, {})
                self._take(kept, now.canvas, now.rows)
                self.standing = now
                return

    def interrupt(self) -> None:
        """End all rows that are still active with what stands; a step that was cut never was."""
        reasons: dict[int, FinishReason] = dict.fromkeys(
            range(len(self.standing.rows)), "interrupted"
        )
        self.standing, _ = self.standing.finished(reasons, {})
        self.whole = True  # no row is left that the cut step has touched

    def _row(self, number: int, request: DecodeRequest) -> Row:
        config = request.config
        for name in SHARED:
            if (own := getattr(config, name)) != (all_ := getattr(self.config, name)):
                raise ConfigError(
                    f"{name}={own!r}: expected {all_!r}, which all rows of this batch have"
                )
        row_id = number if request.row_id is None else request.row_id
        return Row(
            number=number,
            config=config,
            components=self._components(config),
            answers=Answers(self.text, self.model.spec.stop_ids, config.stop),
            key=row_key(config.seed, row_id),
            joined=self.standing.timings if self.number else Timings(0, 0),
        )

    def _components(self, config: DecodeConfig) -> DecodingComponents:
        """The components of `config`; rows with equal ones share them."""
        for known, made in self.components:
            if known is config or known == config:
                return made
        made = DecodingComponents.of(config, self.text, self.model.spec)
        self.components.append((config, made))
        return made

    def _take(self, rows: Array, canvas: Canvas, own: Sequence[Row]) -> None:
        """Go on with `canvas`, whose rows are `rows` [n] (indices) of before, -1 for a new one."""
        device = self.model.device
        for place, source in enumerate(rows.tolist()):
            if 0 <= source != place:
                self.ids[place] = self.ids[source]
        if (new := (rows < 0).nonzero()[0]).size:
            fresh = torch.from_numpy(canvas.ids[new]).to(device)
            self.ids[new[0] : new[0] + len(new), : fresh.shape[1]] = fresh
        self.forward.take(rows, canvas)
        fresh_rows = Counters.fresh(len(new), self.counters.window_start.shape[1])
        self.counters = self.counters.take(rows[rows >= 0]).joined(fresh_rows)
        stay = rows[rows >= 0]
        self.open = np.concatenate([self.open[stay], np.zeros(len(new), dtype=np.bool_)])
        held = np.zeros((2, len(new), self.held.start.shape[1]), dtype=np.int64)
        self.held = Windows(
            np.concatenate([self.held.start[stay], held[0]]),
            np.concatenate([self.held.end[stay], held[1]]),
        )
        used = {id(row.components) for row in own}
        self.components = [pair for pair in self.components if id(pair[1]) in used]
        if not own:
            self.memory = ComponentStates()
            return
        methods = Methods.of(own, self.model.spec, device)
        size, windows = canvas.ids.shape[1], self.counters.window_start.shape[1]
        self.memory = self.memory.take(methods, rows, size, windows, device)
        self.decider = Decider(self.memory, self.model.spec.mask_id)

    # --- a step ----------------------------------------------------------------------------------

    @torch.no_grad()
    def step(self) -> None:
        """One forward and all it decides; `events` tell of it.

        Every active row commits at least one token, or spends one of its rule's spare steps. Rows
        that end are finished.
        """
        if not self.whole:
            raise DecodeError("a step of this batch was interrupted: its rows cannot go on")
        began, self.whole = time.perf_counter(), False
        self._settle(self._advance(), began)
        self.whole = True

    def _advance(self) -> Moved:
        """Windows, forward, decision, and what they make of the canvas."""
        canvas = self.standing.canvas
        planned = self.plan(canvas)
        prepared = self.forward.prepare(canvas, planned.windows, planned.want, self.counters.step)
        asked = self.asked(canvas, planned.windows, prepared.want, prepared.pos)
        sent = send(prepared.arrays() | asked, self.model.device)
        logits = self.forward.run(prepared, sent, self.shown[:, :-1], sent["rows"][1])
        result = self.decide(sent, logits, planned.windows)
        self.forward.settle_time()
        nfe = self.standing.nfe + prepared.computed
        return self.follow(canvas, planned, prepared.pos, result, nfe)

    @property
    def shown(self) -> torch.Tensor:
        """[B, T + 1] what stands on the device; the last position takes what padding writes."""
        count, size = self.standing.canvas.ids.shape
        return self.ids[:count, : size + 1]

    def plan(self, canvas: Canvas, row: Array | None = None) -> Planned:
        """The planners' windows, and what has to be predicted for them.

        row [R]: the batch's row that each canvas is of; first the rows themselves (None: no more).
        """
        methods = self.decider.methods
        each = [
            planner_windows(group, state, canvas, row)
            for group, state in zip(methods.planners, self.memory.planners, strict=True)
        ]
        windows = each[0][1]
        if each[0][0] is not None:
            windows = together(each, len(canvas.row))
        count = self.counters.window_start.shape[1]
        windows = windows.padded(count)
        if windows.start.shape[1] > count:
            count = windows.start.shape[1]
            self.counters = self.counters.wide(count)
            self.memory.widen(self.standing.canvas.ids.shape, count)
        if self.open.any():  # the rule's word counts more than the planner's
            windows = self.held.where(self.open, windows)
        looks, whole = methods.looks_back, methods.whole_row
        if row is not None:
            looks, whole = looks[row], whole[row]
        inside = windows.contains(canvas.pos)
        want = canvas.masked & inside
        errors = self._idle(want)
        if errors:  # whatever: their rows end with this step
            idle = np.isin(np.arange(len(want)), list(errors))
            windows = Windows(canvas.first_masked(), canvas.length).where(idle, windows)
            inside = windows.contains(canvas.pos)
            want = canvas.masked & inside
        if whole.any():
            want |= canvas.masked & whole[:, None]
        if looks.any():
            want |= canvas.generated & canvas.known & inside & looks[:, None]
        return Planned(windows, want, errors)

    def _idle(self, want: Array) -> dict[int, str]:
        """Rows (indices) that a planner leaves without a masked position, and which one did."""
        rows = self.standing.rows
        fine = want[: len(rows)].any(1) | self.open
        if fine.all():
            return {}
        return {
            i: f"{rows[i].components.planner!r} chose a window without a masked position: expected "
            "at least one"
            for i in (~fine).nonzero()[0].tolist()
        }

    def asked(self, canvas: Canvas, windows: Windows, want: Array, pos: Array) -> dict[str, Array]:
        """What the device must know to decide about the positions pos [B, K], those of `want`."""
        if not self.decider.methods.narrows:  # else a window is known behind the forward
            self.counters = self.counters.entered(windows, canvas)
        return self.decider.arrays(canvas, windows, self.counters, want, pos)

    def decide(
        self, sent: Mapping[str, torch.Tensor], logits: torch.Tensor, windows: Windows
    ) -> Result:
        """What is decided from logits [B, K, V] of the positions that were sent."""
        width = int((windows.end - windows.start).max())
        packed = receive(self.decider.decide(sent, logits, self.shown, width))
        return Result.of(packed, sent["pos"].shape[1], self.decider.blocks, self.decider.names)

    def follow(
        self,
        canvas: Canvas,
        planned: Planned,
        pos: Array,
        result: Result,
        nfe: Array,
    ) -> Moved:
        """Do on the host what the device has decided about the positions pos [B, K] of `canvas`."""
        methods, windows = self.decider.methods, planned.windows
        if methods.narrows:
            windows = narrowed(windows, result.numbers)
            for i, state in enumerate(self.memory.planners):  # changed on the device
                for name, f in state.fields.items():
                    if (new := result.numbers.get(f"planner{i}.{name}")) is not None:
                        state.values[name] = new.astype(f.dtype)
        errors = planned.errors | self._unreal(canvas, pos, result)
        if errors:
            result = result.without(list(errors))
        change = CanvasChange.of(canvas, pos, result, self.model.spec.mask_id)
        after = canvas.stepped(change.ids, change.known, result.numbers.get("length"))
        self.counters = self.counters.entered(windows, canvas).stepped(change.gained > 0)
        if methods.remasks.any():
            self.open, self.held = result.numbers["open"].astype(np.bool_), windows
        self.forward.changed = change.changed
        self.forward.saw(pos, result.conf)
        errors |= self._spent(errors)
        settled = first = after.first_masked()
        if methods.remasks.any():
            settled = np.where(methods.remasks, np.minimum(first, planned.windows.first()), first)
        commits = change.commits(self.standing.rows, nfe, result.conf, settled, errors)
        return Moved(after, nfe, 1, commits, self._reasons(after, first, errors), errors)

    def _settle(self, moved: Moved, began: float) -> None:
        """Let the step stand, and its rows that have a reason to end leave the batch."""
        before = self.standing
        self.seconds += time.perf_counter() - began
        timings = Timings(self.seconds, self.forward.seconds)
        for i, commit in moved.commits:
            row = before.rows[i]
            if not before.nfe[i]:
                row.prompt = timings.forward - before.timings.forward
            row.commits.append(commit)
        told = [commit for _, commit in moved.commits]
        canvases = before.canvases + moved.canvases
        now = before.stepped(moved.canvas, moved.nfe, canvases, told, timings)
        self.failed += moved.errors.values()
        if moved.reasons:
            now, kept = now.finished(moved.reasons, moved.errors)
            self._take(kept, now.canvas, now.rows)
        self.standing = now

    def _unreal(self, canvas: Canvas, pos: Array, result: Result) -> dict[int, str]:
        """Rows (indices) whose logits are no numbers, and where."""
        if not np.isnan(result.conf).any():
            return {}
        masked = np.pad(canvas.masked, ((0, 0), (0, 1)))
        bad = np.isnan(result.conf) & np.take_along_axis(masked, pos, 1)
        rows, steps = self.standing.rows, self.counters.step
        return {
            i: f"row {rows[i].number}, step {steps[i]}: the model's logits for position "
            f"{pos[i, bad[i].argmax()]} hold NaN or infinity: expected finite numbers"
            for i in bad.any(1).nonzero()[0].tolist()
        }

    def _spent(self, known: Mapping[int, str]) -> dict[int, str]:
        """Rows (indices) whose rule has spent more steps without a gain than it may."""
        spent = self.counters.spare > self.decider.methods.spare
        rules = {i: self.standing.rows[i].components.rule for i in spent.nonzero()[0].tolist()}
        return {
            i: f"{rule!r} masked as many positions again as it committed: expected fewer, so that "
            f"decoding ends (its spare_steps are {getattr(rule, 'spare_steps', 0)})"
            for i, rule in rules.items()
            if i not in known
        }

    def _reasons(
        self, canvas: Canvas, first_masked: Array, errors: Mapping[int, str]
    ) -> dict[int, FinishReason]:
        """Why rows (indices) are finished.

        A row ends when its first end token, or a stop string, has no masked position before it.
        """
        reasons: dict[int, FinishReason] = dict.fromkeys(errors, "error")
        ended = first_end(canvas, self.model.spec.stop_ids) < first_masked
        full = first_masked == canvas.length
        for i, row in enumerate(self.standing.rows):
            if i in reasons or self.open[i]:
                continue
            if ended[i]:
                reasons[i] = "eos"
            elif row.answers.stop and row.searched != first_masked[i]:
                row.searched = int(first_masked[i])
                if row.answers.stop_index(row.answers.tokens(canvas, i)) is not None:
                    reasons[i] = "stop"
            if full[i]:
                reasons.setdefault(i, "length")
        return reasons
