"""Answers read from a canvas: when one is finished, its tokens and text, its Output."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dllm.decoding.canvas import Canvas
from dllm.output import Commit, FinishReason, Output, Timings
from dllm.text.codec import TextCodec


@dataclass(frozen=True, slots=True)
class Answers:
    """Reads answers; `stop` are the strings that end one, `stop_ids` the tokens that do."""

    text: TextCodec | None
    stop_ids: tuple[int, ...]
    stop: tuple[str, ...]

    def reasons(self, canvas: Canvas) -> list[FinishReason | None]:
        """Why each row is finished, None while it is not.

        A row ends when its first end token, or a stop string, has no masked position before it.
        """
        first_masked = canvas.first_masked().tolist()
        first_end = self.first_end(canvas).tolist()
        length = canvas.length.tolist()
        reasons: list[FinishReason | None] = []
        for i, masked in enumerate(first_masked):
            if first_end[i] < masked:
                reasons.append("eos")
            elif self.stop and self.stop_index(self.tokens(canvas, i)) is not None:
                reasons.append("stop")
            else:
                reasons.append("length" if masked == length[i] else None)
        return reasons

    def first_end(self, canvas: Canvas) -> Tensor:
        """[B] position of the first end token, prefilled ones too; the canvas size without any."""
        ends = torch.isin(canvas.ids, canvas.ids.new_tensor(self.stop_ids))
        inside = (canvas.pos >= canvas.prompt[:, None]) & (canvas.pos < canvas.length[:, None])
        ends &= inside & canvas.known
        return torch.where(ends, canvas.pos, canvas.ids.shape[1]).amin(1)

    def tokens(self, canvas: Canvas, i: int, past_masked: bool = False) -> list[int]:
        """Known answer tokens of row `i` up to its first masked position, or all of them."""
        span = slice(int(canvas.prompt[i]), int(canvas.length[i]))
        known = canvas.known[i, span]
        if not past_masked:
            known = known.cumprod(0).bool()
        tokens: list[int] = canvas.ids[i, span][known].tolist()
        return tokens

    def stop_index(self, tokens: list[int]) -> int | None:
        """Where the first stop string begins in the text of `tokens`."""
        if self.text is None or not self.stop:
            return None
        text = self.text.decode(tokens)
        found = [at for stop in self.stop if (at := text.find(stop)) >= 0]
        return min(found, default=None)

    def output(
        self,
        canvas: Canvas,
        i: int,
        reason: FinishReason,
        commits: list[Commit],
        *,
        nfe: int,
        canvases: int,
        timings: Timings,
        history: bool,
    ) -> Output:
        """The Output of row `i`, which finished for `reason` after `commits`."""
        tokens = self.tokens(canvas, i, past_masked=reason == "interrupted")
        ends = [k for k, token in enumerate(tokens) if token in self.stop_ids]
        answer_tokens = ends[0] + 1 if ends else len(tokens)
        tokens = tokens[: ends[0]] if ends else tokens
        text = "" if self.text is None else self.text.decode(tokens)
        # An interrupted row has gaps: text across them may hold a stop string that is not there.
        cut = None if reason == "interrupted" else self.stop_index(tokens)
        if cut is not None and self.text is not None:
            reason, text = "stop", text[:cut]
            while tokens and len(self.text.decode(tokens)) > cut:
                tokens.pop()
        return Output(
            text=text,
            token_ids=tokens,
            finish_reason=reason,
            nfe=nfe,
            canvases=canvases,
            slots=sum(len(c.positions) - len(c.remasked) for c in commits),
            answer_tokens=answer_tokens,
            timings=timings,
            history=commits if history else None,
        )
