"""Answers read from a canvas: when one is finished, its tokens and text."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dllm.decoding.canvas import Array, Canvas, first_of
from dllm.output import FinishReason
from dllm.text.codec import TextCodec


@dataclass(frozen=True, slots=True)
class Answers:
    """Reads the answer of a row; `stop` are the strings, `stop_ids` the tokens that end it."""

    text: TextCodec | None
    stop_ids: tuple[int, ...]
    stop: tuple[str, ...]

    def tokens(self, canvas: Canvas, i: int, past_masked: bool = False) -> list[int]:
        """Known answer tokens of row `i` up to its first masked position, or all of them."""
        span = slice(canvas.prompt[i], canvas.length[i])
        known = canvas.known[i, span]
        if not past_masked:
            known = np.logical_and.accumulate(known)
        tokens: list[int] = canvas.ids[i, span][known].tolist()
        return tokens

    def stop_index(self, tokens: list[int]) -> int | None:
        """Where the first stop string begins in the text of `tokens`."""
        if self.text is None or not self.stop:
            return None
        text = self.text.decode(tokens)
        found = [at for stop in self.stop if (at := text.find(stop)) >= 0]
        return min(found, default=None)

    def ended(self, canvas: Canvas, i: int, reason: FinishReason) -> Ended:
        """The answer of row `i`, which ends for `reason`."""
        cut_short = reason in ("interrupted", "error")
        tokens = self.tokens(canvas, i, past_masked=cut_short)
        ends = [k for k, token in enumerate(tokens) if token in self.stop_ids]
        count = ends[0] + 1 if ends else len(tokens)
        tokens = tokens[: ends[0]] if ends else tokens
        text = "" if self.text is None else self.text.decode(tokens)
        # A row cut short has gaps: text across them may hold a stop string that is not there.
        cut = None if cut_short else self.stop_index(tokens)
        if cut is not None and self.text is not None:
            reason, text = "stop", text[:cut]
            while tokens and len(self.text.decode(tokens)) > cut:
                tokens.pop()
        return Ended(text, tokens, reason, count)


@dataclass(frozen=True, slots=True)
class Ended:
    """The answer of a row that has ended. count: its tokens, the one that ends it included."""

    text: str
    token_ids: list[int]
    reason: FinishReason
    count: int


def first_end(canvas: Canvas, stop_ids: tuple[int, ...]) -> Array:
    """[B] position of the first end token, prefilled ones too; the canvas size without any."""
    ends = np.zeros(canvas.ids.shape, dtype=np.bool_)
    for token in stop_ids:
        ends |= canvas.ids == token
    ends &= canvas.answer & canvas.known
    size = canvas.ids.shape[1]
    return first_of(ends, np.full(len(ends), size))
