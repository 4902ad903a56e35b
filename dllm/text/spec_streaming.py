"""From events of speculation to what its rows say: whose each token is, and how it reads.

Knows events; knows no model. The terminal view (spec_view.py) and the recorder (recording.py) are
built on it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from dllm.output import Finished, Started
from dllm.verify.output import RowRound, SpecEvent, SpecOutput

if TYPE_CHECKING:
    from dllm.verify.engine import SpecEngine


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
        if self.spell is not None:
            shown = row.tokens[:-1] if event.finish_reason == "eos" else row.tokens
            now = self.spell(shown)
            pieces = {i: piece for i, piece in enumerate(now) if piece != row.pieces[i]}
        changed = dict(pieces or {})
        for place, piece in changed.items():
            row.pieces[place] = piece
        return changed
