"""Speller: the text of single tokens as they read inside a text.

Knows a codec; knows no model and no events.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import cast

from dllm.text.codec import TextCodec

BROKEN = "\ufffd"  # what decoders write for bytes that are no whole character


class Speller:
    """Text of single tokens as they read inside a text."""

    def __init__(self, codec: TextCodec) -> None:
        self.codec = codec
        self.anchor = codec.encode("x")
        self.before = codec.decode(self.anchor)
        self.known: dict[tuple[int, bool], str] = {}

    def spell(self, ids: Sequence[int], first: bool) -> str:
        """Text of consecutive tokens; `first` says that the answer begins with them."""
        if first:
            return self.codec.decode(ids)
        # Many decoders drop a space that begins a text, so these need something before them.
        return self.codec.decode([*self.anchor, *ids]).removeprefix(self.before)

    def pieces(self, tokens: Sequence[int | None]) -> list[str]:
        """The text of every token, nothing for a masked position.

        A character whose bytes are spread over neighbours is the piece of the last of them.
        """
        pieces = [self._alone(token, first=not i) for i, token in enumerate(tokens)]
        broken = [BROKEN in piece for piece in pieces]
        at = 0
        while True in broken[at:]:
            at = broken.index(True, at)
            end = at + len(list(takewhile(bool, broken[at:])))
            run, shown = cast("Sequence[int]", tokens[at:end]), ""
            for i in range(1, len(run) + 1):
                text = self.spell(run[:i], first=at == 0)
                if i < len(run) and text.endswith(BROKEN):
                    text = shown
                pieces[at + i - 1], shown = text[len(shown) :], text
            at = end
        return pieces

    def _alone(self, token: int | None, first: bool) -> str:
        if token is None:
            return ""
        if (token, first) not in self.known:
            self.known[token, first] = self.spell([token], first)
        return self.known[token, first]
