"""The decode loop: which positions, one forward, which tokens, until every row is done.

`Decoding` is one request; `Engine` is what a user holds: stream_steps (ids) -> stream (text) ->
generate (Outputs). This file knows no method: rules, planners and cache policies are parts.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, Protocol, overload

import torch
from torch import Tensor

from dllm.cache.store import KVStore
from dllm.canvas import Canvas, Windows
from dllm.config import DecodeConfig
from dllm.errors import DllmError
from dllm.models.protocol import Model
from dllm.output import Commit, Event, Finished, FinishReason, Output, Started, Timings
from dllm.samplers.candidates import (
    Candidates,
    Progress,
    Proposal,
    hole_positions,
    make_candidates,
)

Message = Mapping[str, str]
Prompt = str | Sequence[Message] | Sequence[int]


class DecodeError(DllmError):
    """A request that cannot be decoded, or a model that answers with NaN."""


class TextCodec(Protocol):
    """Text to ids and back; dllm.text.Text is one."""

    @property
    def has_chat_template(self) -> bool: ...
    def encode(self, text: str) -> list[int]: ...
    def chat(self, messages: Sequence[Message]) -> list[int]: ...
    def decode(self, ids: Sequence[int]) -> str: ...


class Decoding:
    """The state of one request, and its step. Rows that finish leave the batch."""

    def __init__(
        self,
        model: Model,
        text: TextCodec | None,
        prompts: Sequence[Sequence[int]],
        config: DecodeConfig,
        row_ids: Sequence[int] | None = None,
    ) -> None:
        self.model, self.text, self.config = model, text, config
        self.rule, self.planner = config.make_sampler(), config.make_planner()
        self.policy = config.make_cache()
        if config.stop and text is None:
            raise DecodeError("stop strings need a tokenizer: load the engine with one")
        if config.cfg_scale and self.policy.uses_store:
            raise DecodeError(f"cfg_scale={config.cfg_scale} needs cache='none'")
        self.canvas = Canvas.from_prompts(
            prompts, config.max_new_tokens, model.spec.mask_id, model.device
        )
        self.store: KVStore | None = None
        if self.policy.uses_store:
            self.store = model.new_store(*self.canvas.ids.shape)
        self.active = list(range(len(prompts)))  # request index of every row of the canvas
        if row_ids is not None:
            self.canvas.row = torch.tensor(list(row_ids), device=model.device)
        zero = torch.zeros_like(self.canvas.length)
        self.progress = Progress(step=zero, window_step=zero, window_holes=zero)
        self.window_start = zero - 1
        self.proposal = Proposal(
            temperature=config.temperature,
            top_p=config.top_p,
            top_k=config.top_k,
            tempered=self.rule.tempered,
            banned=(model.spec.mask_id, *((model.spec.eos_id,) if self.rule.bans_eos else ())),
            stop_ids=model.spec.stop_ids,
            seed=config.seed,
        )
        self.commits: dict[int, list[Commit]] = {row: [] for row in self.active}
        self.nfe = 0  # forwards run so far; rows still active took part in all of them
        self.seconds = self.forward_seconds = 0.0

    @torch.no_grad()
    def step(self) -> list[Event]:
        """One step: every active row commits at least one token; rows that end are finished."""
        began = self._clock()
        windows = self.planner.windows(self.canvas)
        self._enter(windows)
        pos, valid = hole_positions(self.canvas, windows)
        if not bool(valid.any(1).all()):
            raise DecodeError(
                f"{self.planner!r} chose a window without a hole: expected at least one"
            )
        logits = self._forward(pos)
        view = make_candidates(
            logits,
            pos,
            valid,
            self.canvas,
            windows,
            self.progress,
            self.proposal,
            self.rule.needs,
        )
        self._check(view)
        chosen = self.rule.select(view).commit & view.valid
        nothing = ~chosen.any(1, keepdim=True)
        chosen = chosen | (nothing & view.valid & (view.rank() == 0))
        self.canvas.commit(view.pos, view.token, chosen)
        committed = torch.zeros_like(self.canvas.known).scatter_(1, view.pos, chosen)
        self.policy.after(self.canvas, committed)
        commits = list(self._record(view, chosen))
        self.seconds += self._clock() - began
        return [*commits, *self._finish_rows()]

    def _enter(self, windows: Windows) -> None:
        """Reset the window counters of rows whose window is new; count the coming step."""
        new = windows.start != self.window_start
        inside = (self.canvas.holes & windows.contains(self.canvas.pos)).sum(1)
        self.progress = Progress(
            step=self.progress.step,
            window_step=self.progress.window_step.masked_fill(new, 0),
            window_holes=torch.where(new, inside, self.progress.window_holes),
        )
        self.window_start = windows.start

    def _forward(self, want: Tensor) -> Tensor:
        """Logits [B, K, V] that predict the tokens at `want` [B, K]; two forwards with guidance."""
        began = self._clock()
        plan = self.policy.plan(self.canvas, want, self.model.spec.shift)
        logits = self.model(self.canvas.ids, plan, self.store)
        self.nfe += 1
        if scale := self.config.cfg_scale:
            hidden = self.canvas.pos < self.canvas.prompt[:, None]
            ids = self.canvas.ids.masked_fill(hidden, self.model.spec.mask_id)
            without = self.model(ids, plan, self.store)
            self.nfe += 1
            guided = without + (scale + 1) * (logits - without)
            logits = guided.masked_fill(logits == -torch.inf, -torch.inf)  # forbidden stays so
        self.forward_seconds += self._clock() - began
        return logits

    def _clock(self) -> float:
        if self.model.device.type == "cuda":
            torch.cuda.synchronize(self.model.device)
        return time.perf_counter()

    def _check(self, view: Candidates) -> None:
        bad = view.valid & ~torch.isfinite(view.conf)
        if bool(bad.any()):
            row, k = bad.nonzero()[0].tolist()
            raise DecodeError(
                f"row {self.active[row]}, step {int(view.step[row])}: the model's logits for "
                f"position {int(view.pos[row, k])} hold NaN or infinity: expected finite numbers"
            )

    def _record(self, view: Candidates, chosen: Tensor) -> Iterator[Commit]:
        """The commits of this step as events; moves the step counters."""
        step, window_step = self.progress.step + 1, self.progress.window_step + 1
        self.progress = replace(self.progress, step=step, window_step=window_step)
        for i, row in enumerate(self.active):
            which = chosen[i]
            commit = Commit(
                row=row,
                nfe=self.nfe,
                positions=view.pos[i, which].tolist(),
                token_ids=view.token[i, which].tolist(),
                confidences=view.conf[i, which].tolist(),
            )
            self.commits[row].append(commit)
            yield commit

    def _finish_rows(self) -> Iterator[Finished]:
        """Finish every row that has ended and take it out of the batch."""
        reasons = self._reasons()
        for i, reason in enumerate(reasons):
            if reason is not None:
                yield Finished(self.active[i], self._output(i, reason))
        stay = [i for i, reason in enumerate(reasons) if reason is None]
        if len(stay) < len(reasons):
            self._keep(torch.tensor(stay, dtype=torch.long, device=self.model.device))
            self.active = [self.active[i] for i in stay]

    def _keep(self, rows: Tensor) -> None:
        self.canvas.keep(rows)
        self.policy.keep(rows)
        if self.store is not None:
            self.store.keep(rows)
        p = self.progress
        self.progress = Progress(p.step[rows], p.window_step[rows], p.window_holes[rows])
        self.window_start = self.window_start[rows]

    def _reasons(self) -> list[FinishReason | None]:
        """Why each row is finished, None while it is not."""
        canvas = self.canvas
        first_hole = canvas.first_hole().tolist()
        first_end = self._first_end().tolist()
        length = canvas.length.tolist()
        reasons: list[FinishReason | None] = []
        for i, hole in enumerate(first_hole):
            if first_end[i] < hole:
                reasons.append("eos")
            elif self.config.stop and self._stop_index(self._tokens(i)) is not None:
                reasons.append("stop")
            else:
                reasons.append("length" if hole == length[i] else None)
        return reasons

    def _first_end(self) -> Tensor:
        """[B] position of the first committed end token, the canvas size where there is none."""
        canvas = self.canvas
        ends = torch.isin(canvas.ids, canvas.ids.new_tensor(self.model.spec.stop_ids))
        ends &= canvas.generated & canvas.known
        return torch.where(ends, canvas.pos, canvas.ids.shape[1]).amin(1)

    def _tokens(self, i: int, past_holes: bool = False) -> list[int]:
        """Committed tokens of canvas row `i` up to its first hole, or all, holes left out."""
        span = slice(int(self.canvas.prompt[i]), int(self.canvas.length[i]))
        known = self.canvas.known[i, span]
        if not past_holes:
            known = known.cumprod(0).bool()
        tokens: list[int] = self.canvas.ids[i, span][known].tolist()
        return tokens

    def _stop_index(self, tokens: list[int]) -> int | None:
        """Where the first stop string begins in the text of `tokens`."""
        if self.text is None or not self.config.stop:
            return None
        text = self.text.decode(tokens)
        found = [at for stop in self.config.stop if (at := text.find(stop)) >= 0]
        return min(found, default=None)

    def _output(self, i: int, reason: FinishReason) -> Output:
        row, tokens = self.active[i], self._tokens(i, past_holes=reason == "interrupted")
        ends = [k for k, token in enumerate(tokens) if token in self.model.spec.stop_ids]
        answer_tokens = ends[0] + 1 if ends else len(tokens)
        tokens = tokens[: ends[0]] if ends else tokens
        text = "" if self.text is None else self.text.decode(tokens)
        # An interrupted row has holes: text across them may hold a stop string that is not there.
        cut = None if reason == "interrupted" else self._stop_index(tokens)
        if cut is not None and self.text is not None:
            reason, text = "stop", text[:cut]
            while tokens and len(self.text.decode(tokens)) > cut:
                tokens.pop()
        return Output(
            text=text,
            token_ids=tokens,
            finish_reason=reason,
            nfe=self.nfe,
            slots=sum(len(commit.positions) for commit in self.commits[row]),
            answer_tokens=answer_tokens,
            timings=Timings(self.seconds, self.forward_seconds),
            history=self.commits[row] if self.config.history else None,
        )

    def interrupt(self) -> list[Finished]:
        """End all rows that are still active with what they have."""
        found = [Finished(row, self._output(i, "interrupted")) for i, row in enumerate(self.active)]
        self.active = []
        return found


class Engine:
    """A model and its tokenizer, ready to decode. `dllm.load` makes one."""

    def __init__(self, model: Model, text: TextCodec | None = None) -> None:
        self.model = model
        self.text = text

    def stream_steps(
        self,
        prompts: Sequence[Sequence[int]],
        config: DecodeConfig,
        *,
        row_ids: Sequence[int] | None = None,
    ) -> Iterator[Event]:
        """Decode token ids; yield Started, Commit and Finished events of all rows as they happen.

        row_ids: the identity of each row in random draws (default: its index), so that a row
        samples the same alone, in a batch, or on another machine. KeyboardInterrupt ends the rows
        that are left with finish_reason "interrupted". Raises DecodeError.
        """
        self._check(prompts, config, row_ids)
        if not prompts:
            return
        decoding = Decoding(self.model, self.text, prompts, config, row_ids)
        for row, prompt in enumerate(prompts):
            yield Started(row, list(prompt), config.max_new_tokens)
        step: Iterator[Event] = iter(())
        try:
            while decoding.active:
                step = iter(decoding.step())
                yield from step
        except KeyboardInterrupt:
            yield from step  # what the interrupted step had still to tell
            yield from decoding.interrupt()

    def stream(
        self,
        prompts: Prompt | Sequence[Prompt],
        config: DecodeConfig | None = None,
        *,
        chat: bool | Literal["auto"] = "auto",
        row_ids: Sequence[int] | None = None,
        **options: Any,
    ) -> Iterator[Event]:
        """Decode text, messages or ids; events and row_ids as in `stream_steps`.

        Prompts, chat and options are those of `generate`.
        """
        config = (config or DecodeConfig()).replace(**options)
        batch, _ = as_batch(prompts)
        ids = [self.encode(prompt, chat) for prompt in batch]
        yield from self.stream_steps(ids, config, row_ids=row_ids)

    @overload
    def generate(
        self, prompts: str, config: DecodeConfig | None = ..., **options: Any
    ) -> Output: ...
    @overload
    def generate(
        self, prompts: Sequence[Any], config: DecodeConfig | None = ..., **options: Any
    ) -> Any: ...
    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        config: DecodeConfig | None = None,
        *,
        chat: bool | Literal["auto"] = "auto",
        row_ids: Sequence[int] | None = None,
        **options: Any,
    ) -> Output | list[Output]:
        """Decode one prompt to an Output, or a list of prompts to a list of Outputs.

        A prompt is text, a list of messages ({"role", "content"}) or a list of token ids. chat:
        wrap text in the chat template ("auto": if there is one). row_ids: see `stream_steps`.
        Options are DecodeConfig's fields; an unknown one is an error. Ctrl-C returns what is
        committed so far.
        """
        batch, single = as_batch(prompts)
        done: dict[int, Output] = {}
        events = self.stream(batch, config, chat=chat, row_ids=row_ids, **options)
        for event in events:
            if isinstance(event, Finished):
                done[event.row] = event.output
        return done[0] if single else [done[row] for row in range(len(batch))]

    def encode(self, prompt: Prompt, chat: bool | Literal["auto"] = "auto") -> list[int]:
        """Token ids of a prompt; see `generate` for what it may be."""
        if not isinstance(prompt, str) and all(isinstance(item, int) for item in prompt):
            return [int(item) for item in prompt]  # type: ignore[arg-type]
        if self.text is None:
            raise DecodeError("this engine has no tokenizer: give prompts as lists of token ids")
        if not isinstance(prompt, str):
            return self.text.chat(prompt)  # type: ignore[arg-type]
        if chat is True or (chat == "auto" and self.text.has_chat_template):
            return self.text.chat([{"role": "user", "content": prompt}])
        return self.text.encode(prompt)

    def _check(
        self,
        prompts: Sequence[Sequence[int]],
        config: DecodeConfig,
        row_ids: Sequence[int] | None,
    ) -> None:
        if row_ids is not None and len(row_ids) != len(prompts):
            raise DecodeError(f"{len(row_ids)} row_ids for {len(prompts)} prompts")
        vocab, most = self.model.spec.vocab_size, getattr(self.model.spec, "max_positions", None)
        for row, prompt in enumerate(prompts):
            outside = [token for token in prompt if not 0 <= token < vocab]
            if outside:
                raise DecodeError(
                    f"row {row}: token id {outside[0]} is outside the vocabulary [0, {vocab})"
                )
            size = len(prompt) + config.max_new_tokens
            if most is not None and size > most:
                raise DecodeError(
                    f"row {row}: {len(prompt)} prompt tokens and max_new_tokens="
                    f"{config.max_new_tokens} need {size} positions; the model has {most}"
                )


def as_batch(prompts: Prompt | Sequence[Prompt]) -> tuple[list[Prompt], bool]:
    """A list of prompts, and whether the caller gave a single one. Tensors and arrays are ids."""
    if isinstance(prompts, str):
        return [prompts], True
    if hasattr(prompts, "tolist"):
        prompts = prompts.tolist()
    if prompts and isinstance(prompts[0], (int, Mapping)):
        return [prompts], True  # type: ignore[list-item]
    return list(prompts), False  # type: ignore[arg-type]
