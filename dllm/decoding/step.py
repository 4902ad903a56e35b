"""One request being decoded: its state, and the step that every method shares.

A step asks the planner where, the cache policy what to compute, the model for logits, the rule
which tokens, the stop rule whether that is enough. This file knows no method.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from dllm.config import DecodeConfig
from dllm.decoding.answers import Answers
from dllm.decoding.canvas import Canvas, Prefilled, Windows
from dllm.decoding.components import DecodingComponents, check_prefilled, encode_prefilled
from dllm.decoding.forward import Forward
from dllm.decoding.speculation import CandidateCanvases, Guesses, merged
from dllm.decoding.standing import Standing
from dllm.errors import DllmError
from dllm.models.protocol import Model
from dllm.output import Commit, Event, FinishReason, Started, Timings
from dllm.samplers.candidates import (
    Candidates,
    Decoded,
    Progress,
    Proposal,
    divergence,
    per_window,
    score,
)
from dllm.samplers.rule import Selection, commits
from dllm.text.codec import TextCodec

State = dict[str, Tensor]


class DecodeError(DllmError):
    """A request that cannot be decoded, or a model that answers with NaN."""


class Decoding:
    """The state of one request, and its step. Rows that finish leave the batch."""

    def __init__(
        self,
        model: Model,
        text: TextCodec | None,
        prompts: Sequence[Sequence[int]],
        config: DecodeConfig,
        row_ids: Sequence[int] | None = None,
        prefilled: Sequence[Prefilled] | None = None,
    ) -> None:
        self.model, self.config = model, config
        spec, device = model.spec, model.device
        self.components = DecodingComponents.of(config, text, spec)
        shared = encode_prefilled(config.prefilled, text)
        stands = [[*shared, *own] for own in prefilled or [()] * len(prompts)]
        check_prefilled(stands, config.max_new_tokens)
        self.canvas = Canvas.from_prompts(
            prompts, config.max_new_tokens, spec.mask_id, device, prefilled=stands
        )
        if row_ids is not None:
            self.canvas.row = torch.tensor(list(row_ids), device=device)
        self.forward = Forward.of(model, self.components.policy, config, self.canvas)
        zero = torch.zeros_like(self.canvas.length)
        self.progress = Progress(zero, zero[:, None], zero[:, None], zero[:, None] - 1)
        self.proposal = Proposal(
            temperature=config.temperature,
            top_p=config.top_p,
            top_k=config.top_k,
            tempered=self.components.rule.tempered,
            banned=(spec.mask_id, *((spec.eos_id,) if self.components.rule.bans_eos else ())),
            stop_ids=spec.stop_ids,
            seed=config.seed,
        )
        # What the components remember, by kind: tensors by name, the rule's with a row for every
        # (row, window), the others' with one for every row.
        kinds = ("rule", "planner", "stop_rule", "transform", "kl")
        self.states: dict[str, State] = {kind: {} for kind in kinds}
        self.guesses = Guesses()
        self.answers = Answers(text, spec.stop_ids, config.stop)
        self.canvases = zero  # [B] canvases computed for each row
        self.seconds = 0.0
        started = [
            Started(row, list(prompt), config.max_new_tokens) for row, prompt in enumerate(prompts)
        ]
        self.standing = Standing.at_start(self.canvas, [*started, *self._prefilled()])

    @property
    def active(self) -> Sequence[int]:
        """Request index of every row of the canvas."""
        return self.standing.active

    @property
    def events(self) -> Iterator[Event]:
        """Events that were not told yet, each once."""
        return self.standing.unsent

    def _prefilled(self) -> Iterator[Commit]:
        """The answer tokens that stand in every row from the start, as events of forward 0."""
        canvas = self.canvas
        answer = (canvas.pos >= canvas.prompt[:, None]) & (canvas.pos < canvas.length[:, None])
        settled = canvas.first_masked().tolist()
        for i, which in enumerate(answer & ~canvas.generated):
            if bool(which.any()):
                where, ids = canvas.pos[which].tolist(), canvas.ids[i, which].tolist()
                yield Commit(i, 0, where, ids, [1.0] * len(ids), settled=settled[i])

    @torch.no_grad()
    def step(self) -> None:
        """One forward and all it decides: every active row commits at least one token.

        Where the forward had guessed the canvas that a row has now become, the row's next step
        follows at once. Rows that end are finished. `events` tell of it.
        """
        began = time.perf_counter()
        self.canvas = self.standing.canvas.copy()
        computed = self._compute()
        every = torch.arange(len(self.active), device=self.model.device)
        which = every
        made: list[Commit] = []
        self.guesses = Guesses()
        while True:
            made += self._advance(computed, which)
            reasons = self.answers.reasons(self.canvas)
            if len(computed.row) == len(every):
                break
            which = self._guessed(computed, reasons)
            if bool((which < 0).all()):  # read by the host: whether another pass is needed
                break
        self.seconds += time.perf_counter() - began
        self._settle(made, reasons)

    def _compute(self) -> CandidateCanvases:
        """One forward: logits for every row's canvas and for its guesses."""
        canvas, row = self.guesses.stacked(self.canvas)
        state = {name: t[row] for name, t in self.states["planner"].items()}
        windows, want = self._scope(canvas, state)
        self._check_windows(want.any(1))
        logits, pos, want = self.forward.predict(
            canvas, windows, want, self.progress.step[row], row
        )
        self.canvases = self.canvases + torch.bincount(row, minlength=len(self.active))
        return CandidateCanvases(row, canvas.length, canvas.ids, canvas.known, want, pos, logits)

    def _scope(self, canvas: Canvas, state: State) -> tuple[Windows, Tensor]:
        """The planner's windows, and the positions [B, T] whose logits a component wants to see."""
        windows = self.components.planner.windows(canvas, state)
        inside = windows.contains(canvas.pos)
        stop_rule = self.components.stop_rule
        want = canvas.masked
        if stop_rule is None or not stop_rule.whole_row:
            want = want & inside
        if "decoded" in self.components.needs:
            want = want | (canvas.generated & canvas.known & inside)
        return windows, want

    def _guessed(
        self, computed: CandidateCanvases, reasons: Sequence[FinishReason | None]
    ) -> Tensor:
        """[B] the computed canvas that each row has become; -1: none, or the row is finished."""
        running = torch.tensor([reason is None for reason in reasons], device=computed.row.device)
        _, want = self._scope(self.canvas, dict(self.states["planner"]))
        return computed.find(self.canvas, want).masked_fill(~running, -1)

    def _advance(self, computed: CandidateCanvases, which: Tensor) -> list[Commit]:
        """The step of all rows that have a canvas `which` [B] (-1: none), from its logits."""
        moves = which >= 0
        before = {kind: dict(state) for kind, state in self.states.items()}
        windows, _ = self._scope(self.canvas, self.states["planner"])
        first = windows.first()
        pos, logits, want = computed.of(which)
        seen = want.gather(1, pos)
        whole = self._score(logits, pos, seen, moves)
        self._check(whole)
        self.forward.saw(pos, seen & moves[:, None], whole.conf)
        inside = replace(whole, valid=whole.valid & windows.contains(pos))
        windows = self.components.planner.narrow(inside, windows, self.states["planner"])
        windows = windows.padded(self.progress.window_start.shape[1])
        self._enter(windows, moves)
        view = per_window(inside, windows, self.progress)
        selection = self.components.rule.select(view)
        chosen = commits(view, selection, self._forced(view, windows, moves))
        events = self._commit(whole, view, selection, chosen, first)
        for kind, state in self.states.items():
            moved = moves if kind != "rule" else moves.repeat_interleave(windows.start.shape[1])
            self.states[kind] = merged(before[kind], state, moved)
        if self.components.speculator is not None:
            sets = self.components.speculator.drafts(self.components.rule, view, chosen)
            sets = [self._per_row(each & ~chosen).any(1) for each in sets]
            self.guesses.renew(moves, self.canvas, pos, self._per_row(view.token)[:, 0], sets)
        return events

    def _score(self, logits: Tensor, pos: Tensor, seen: Tensor, moves: Tensor) -> Candidates:
        """All masked positions whose logits [B, K, V] were computed, a view row per canvas row."""
        canvas, needs = self.canvas, self.components.needs
        fields = score(
            logits,
            pos,
            seen,
            self.progress.step,
            canvas,
            self.proposal,
            needs,
            self.components.transform,
            self.states["transform"],
        )
        if "kl" in needs:
            fields["kl"] = divergence(fields["logits"], pos, seen, self.states["kl"])
        if "logits" not in needs:
            fields.pop("logits", None)
        masked_here = seen & canvas.masked.gather(1, pos)
        decoded = None
        if "decoded" in needs:
            decoded = Decoded(pos, seen & ~masked_here & moves[:, None], fields["best_conf"])
        masked, size = canvas.masked.sum(1), canvas.generated.sum(1)
        return Candidates(
            pos=pos,
            valid=masked_here & moves[:, None],
            **fields,
            start=canvas.prompt,
            end=canvas.length,
            window_masked=masked,
            window_step=self.progress.step,
            step=self.progress.step,
            prompt=canvas.prompt,
            length=canvas.length,
            row=canvas.row,
            filled=1 - masked / size.clamp(min=1),
            seed=self.config.seed,
            decoded=decoded,
            state=self.states["rule"],
        )

    def _check(self, view: Candidates) -> None:
        bad = view.valid & ~torch.isfinite(view.conf)
        if bool(bad.any()):
            row, k = bad.nonzero()[0].tolist()
            raise DecodeError(
                f"row {self.active[row]}, step {int(view.step[row])}: the model's logits for "
                f"position {int(view.pos[row, k])} hold NaN or infinity: expected finite numbers"
            )

    def _enter(self, windows: Windows, moves: Tensor) -> None:
        """Begin the counters anew where a window is new; rows that do not move keep theirs."""
        masked = self.canvas.masked[:, None] & windows.each(self.canvas.pos)  # [B, N, T]
        old = self.progress
        start, step, count = (
            t.expand_as(windows.start)
            for t in (old.window_start, old.window_step, old.window_masked)
        )
        new = ((start != windows.start) | (count == 0)) & moves[:, None]
        self.progress = Progress(
            step=old.step,
            window_step=step.masked_fill(new, 0),
            window_masked=torch.where(new, masked.sum(2), count),
            window_start=torch.where(new, windows.start, start),
        )

    def _forced(self, view: Candidates, windows: Windows, moves: Tensor) -> Tensor:
        """[B * N] the windows that must commit something: a row's first one, and what it says."""
        has_masked = view.valid.any(1).view_as(windows.start)
        self._check_windows(has_masked.any(1) | ~moves)
        first = has_masked & (has_masked.cumsum(1) == 1)
        forced = has_masked if windows.forced is None else first | (windows.forced & has_masked)
        return forced.flatten()

    def _check_windows(self, good: Tensor) -> None:
        if not bool(good.all()):
            raise DecodeError(
                f"{self.components.planner!r} chose a window without a masked position: "
                "expected at least one"
            )

    def _per_row(self, t: Tensor) -> Tensor:
        """[B, N, K] of a tensor [B * N, K] with a row for every window."""
        return t.view(len(self.active), -1, t.shape[1])

    def _commit(
        self,
        whole: Candidates,
        view: Candidates,
        selection: Selection,
        chosen: Tensor,
        first: Tensor,
    ) -> list[Commit]:
        """Write one step's decision to the canvas; one event for each row that moved."""
        token = view.token if selection.token is None else selection.token
        # windows are disjoint: at most one of a row's N entries is not 0
        token = self._per_row(torch.where(chosen, token, 0)).sum(1)
        chosen = self._per_row(chosen).any(1)
        reopened, known = torch.zeros_like(chosen), self.canvas.known.clone()
        if selection.remask is not None and view.decoded is not None:
            reopened = self._per_row(selection.remask & view.decoded.valid).any(1)
            if bool((reopened.any(1) & (reopened.sum(1) >= chosen.sum(1))).any()):
                raise DecodeError(
                    f"{self.components.rule!r} masked as many positions again as it committed: "
                    "expected fewer, so that decoding ends"
                )
        self.canvas.commit(whole.pos, token, chosen)
        held = self.canvas.ids.gather(1, whole.pos)
        self.canvas.reopen(whole.pos, reopened, self.model.spec.mask_id)
        if self.components.stop_rule is not None:
            chosen, token, reopened = self._stop(whole, chosen, token, reopened, held)
        self.forward.changed = self.canvas.known ^ known
        settled = self.canvas.first_masked()
        if self.components.rule.remasks:
            settled = torch.minimum(settled, first)
        return list(self._record(whole, chosen, token, reopened, settled))

    def _stop(
        self, whole: Candidates, chosen: Tensor, token: Tensor, reopened: Tensor, held: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Let the stop rule fill or shorten rows; the step's decision with what it filled.

        A row that is filled keeps the tokens it `held` [B, K]: none of them is masked again.
        """
        assert self.components.stop_rule is not None
        moves = chosen.any(1)
        verdict = self.components.stop_rule.check(whole, self.canvas, self.states["stop_rule"])
        if verdict.fill is not None and whole.best is not None:
            fill = (verdict.fill & moves)[:, None]
            rest = whole.valid & ~chosen & fill
            token, chosen = torch.where(rest, whole.best, token), chosen | rest
            self.canvas.commit(whole.pos, token, rest)
            self.canvas.commit(whole.pos, held, reopened & fill)
            reopened = reopened & ~fill
        if verdict.length is not None:
            self.canvas.shorten(torch.where(moves, verdict.length, self.canvas.length))
        return chosen, token, reopened

    def _record(
        self,
        whole: Candidates,
        chosen: Tensor,
        token: Tensor,
        reopened: Tensor,
        settled: Tensor,
    ) -> Iterator[Commit]:
        """The commits of this step as events; moves the step counters."""
        moves = chosen.any(1).long()
        step, window_step = self.progress.step, self.progress.window_step
        self.progress = replace(
            self.progress, step=step + moves, window_step=window_step + moves[:, None]
        )
        for i, row in enumerate(self.active):
            which = chosen[i]
            if not bool(which.any()):
                continue
            yield Commit(
                row=row,
                nfe=int(self.forward.nfe[i]),
                positions=whole.pos[i, which].tolist(),
                token_ids=token[i, which].tolist(),
                confidences=whole.conf[i, which].tolist(),
                remasked=whole.pos[i, reopened[i]].tolist(),
                settled=int(settled[i]),
            )

    def _settle(self, made: Sequence[Commit], reasons: Sequence[FinishReason | None]) -> None:
        """Let the step stand, and its rows that have a reason to end leave the batch."""
        timings = Timings(self.seconds, self.forward.seconds, self.forward.first)
        counts = self.forward.nfe.tolist(), self.canvases.tolist()
        now = self.standing.stepped(self.canvas, *counts, made, timings)
        if any(reasons):
            now = now.finished(reasons, self.answers, self.config.history)
            stay = [i for i, reason in enumerate(reasons) if reason is None]
            rows = torch.tensor(stay, dtype=torch.long, device=self.model.device)
            self._keep(rows, now.canvas.ids.shape[1])
        self.standing = now

    def _keep(self, rows: Tensor, length: int) -> None:
        """Drop all rows but `rows` [n] (indices), and the positions from `length` on."""
        windows = self.progress.window_start.shape[1]
        self.forward.keep(rows, length)
        self.guesses.keep(rows)
        for kind, state in self.states.items():
            count = windows if kind == "rule" else 1
            which = (rows[:, None] * count + torch.arange(count, device=rows.device)).flatten()
            self.states[kind] = {name: t[which] for name, t in state.items()}
        p = self.progress
        self.progress = Progress(
            *(t[rows] for t in (p.step, p.window_step, p.window_masked, p.window_start))
        )
        self.canvases = self.canvases[rows]

    def interrupt(self) -> None:
        """End all rows that are still active with what stands; a step that was cut never was."""
        reasons: list[FinishReason | None] = ["interrupted" for _ in self.active]
        self.standing = self.standing.finished(reasons, self.answers, self.config.history)
