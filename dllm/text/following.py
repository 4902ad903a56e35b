"""Followers: the rows of a batch rebuilt from events, of decoding and of speculation.

They know events and how tokens are spelled; no model and no sampler. The terminal views and the
recorder are built on them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import TYPE_CHECKING

from dllm.errors import DllmError
from dllm.output import Event, Finished, Output, Started
from dllm.text.spelling import Speller
from dllm.verify.output import RowRound, SpecEvent, SpecOutput

if TYPE_CHECKING:
    from dllm.engine import Engine
    from dllm.verify.engine import SpecEngine


@dataclass(slots=True)
class AnswerSoFar:
    """The answer of one row so far; a masked position has no token, forward 0 and an empty piece.

    forwards: the forward in which each token was committed. steps: all forwards that committed.
    seconds: what the engine had spent when the row last changed.
    """

    prompt_ids: list[int]
    tokens: list[int | None]
    forwards: list[int]
    pieces: list[str]
    steps: list[int] = field(default_factory=lambda: [0])
    seconds: float = 0.0
    output: Output | None = None


class Follower:
    """The canvas of every row, rebuilt from events.

    Without a speller, as in a replay, the pieces of text come with the events.
    """

    def __init__(self, stop_ids: Collection[int], speller: Speller | None = None) -> None:
        self.stop_ids, self.speller = stop_ids, speller
        self.rows: dict[int, AnswerSoFar] = {}

    @classmethod
    def of(cls, engine: Engine) -> Follower:
        """A follower of what `engine` decodes."""
        if engine.text is None:
            raise DllmError("this engine has no tokenizer, so there is no text to show")
        return cls(engine.model.spec.stop_ids, Speller(engine.text))

    def apply(
        self, event: Event, seconds: float = 0.0, pieces: Mapping[int, str] | None = None
    ) -> dict[int, str]:
        """Take in one event; return the pieces that it changed, by place in the answer."""
        if isinstance(event, Started):
            size = event.max_new_tokens
            self.rows[event.row] = AnswerSoFar(
                event.prompt_ids, [None] * size, [0] * size, [""] * size
            )
            return {}
        row = self.rows[event.row]
        row.seconds = seconds
        if isinstance(event, Finished):
            row.output = event.output
            return {}
        written = (event.positions, event.token_ids), (event.replaced, event.replaced_ids)
        for position, token in chain(*(zip(*pair, strict=True) for pair in written)):
            place = position - len(row.prompt_ids)
            row.tokens[place], row.forwards[place] = token, event.nfe
        for position in event.remasked:
            place = position - len(row.prompt_ids)
            row.tokens[place], row.forwards[place] = None, 0
        row.steps.append(event.nfe)
        spelled = None if self.speller is None else self.speller.pieces(row.tokens)
        return _respelled(row.pieces, spelled, pieces)

    def step_is_complete(self) -> bool:
        """Whether all rows that still run have seen the same forwards."""
        return len({row.steps[-1] for row in self.rows.values() if row.output is None}) <= 1

    def end(self, row: AnswerSoFar) -> int:
        """Place of the first committed end token of `row`, its size where there is none."""
        ends = (i for i, token in enumerate(row.tokens) if token in self.stop_ids)
        return next(ends, len(row.tokens))

    def count(self, row: AnswerSoFar) -> int:
        """Tokens committed up to and including the first end token."""
        if row.output is not None:
            return row.output.answer_tokens
        return sum(token is not None for token in row.tokens[: self.end(row) + 1])

    def text(self, row: AnswerSoFar) -> str:
        """The text of a row: its output's, or what is committed while there is none."""
        return row.output.text if row.output else "".join(row.pieces[: self.end(row)])


@dataclass(slots=True)
class SpecRow:
    """The answer of one row so far: its rounds, and the text of each of its tokens."""

    rounds: list[RowRound] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)
    output: SpecOutput | None = None

    @property
    def tokens(self) -> list[int]:
        return [token for each in self.rounds for token in each.tokens]

    def drafted(self) -> Iterator[bool]:
        """Of every token whether a draft proposed it."""
        return (place < each.accepted for each in self.rounds for place in range(len(each.tokens)))


class SpecFollower:
    """The rows of a batch, rebuilt from events.

    spell: what each of some tokens adds to the text; without it, as in a replay, the pieces of text
    come with the events.
    """

    def __init__(self, spell: Callable[[Sequence[int]], list[str]] | None = None) -> None:
        self.spell = spell
        self.rows: dict[int, SpecRow] = {}

    @classmethod
    def of(cls, engine: SpecEngine) -> SpecFollower:
        """A follower of what `engine` decodes."""
        engine.pieces([])  # says so at once where there is no tokenizer
        return cls(engine.pieces)

    def apply(
        self, event: SpecEvent, seconds: float = 0.0, pieces: Mapping[int, str] | None = None
    ) -> dict[int, str]:
        """Take in one event; return the pieces that it changed, by place in the answer."""
        if isinstance(event, Started):
            self.rows[event.row] = SpecRow()
            return {}
        row = self.rows[event.row]
        if isinstance(event, Finished):
            row.output = replace(event.output, rounds=tuple(row.rounds))
            return {}
        row.rounds.append(event)
        row.pieces += [""] * len(event.tokens)
        shown = row.tokens[:-1] if event.finish_reason == "eos" else row.tokens
        spelled = None if self.spell is None else self.spell(shown)
        return _respelled(row.pieces, spelled, pieces)


def _respelled(
    pieces: list[str], spelled: Sequence[str] | None, told: Mapping[int, str] | None
) -> dict[int, str]:
    """Put new texts into `pieces`: all of them `spelled`, or else those `told` by place. Returns
    the ones that changed.
    """
    changed = dict(told or {})
    if spelled is not None:
        changed = {i: piece for i, piece in enumerate(spelled) if piece != pieces[i]}
    for place, piece in changed.items():
        pieces[place] = piece
    return changed
