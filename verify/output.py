"""Output of speculation: rounds while it runs, a `SpecOutput` a row at the end.

Knows no tensors, so that what was recorded is shown again without them.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

from dllm.output import Finished, FinishReason, Started


@dataclass(frozen=True, slots=True)
class RowRound:
    """What a round came to in one row.

    tokens: emitted.  sources: who had proposed each accepted one (the first of `tokens`).
    drafts: verified nodes.  depth: columns that the drafter was asked for, 0 if it did not run.
    """

    row: int
    tokens: tuple[int, ...]
    sources: tuple[str, ...]
    drafts: int
    depth: int
    finish_reason: str | None

    @property
    def accepted(self) -> int:
        """Draft tokens that were emitted."""
        return len(self.sources)


@dataclass(frozen=True, slots=True)
class Round:
    """One pass of the target.

    draft, verify, host: seconds in the drafter, in the target and the walk, elsewhere.
    """

    rows: tuple[RowRound, ...]
    draft: float
    verify: float
    host: float


@dataclass(frozen=True, slots=True)
class SpecOutput:
    """The result of one prompt.

    text: the answer, cut where a stop string begins.  token_ids: its tokens, without the end token
    or those that reach into the stop string.  rounds: one per pass of the target, in order.
    target_passes, drafter_passes: those this row took part in.  seconds: of those rounds, all rows
    of the batch together.  lossless: whether the acceptance rule leaves the target's distribution
    as it is.  decoding: the target's own, its checkpoint's options included, as transformers names
    them.
    """

    text: str
    token_ids: list[int]
    finish_reason: FinishReason
    rounds: tuple[RowRound, ...]
    seconds: float
    rule: str
    lossless: bool
    decoding: dict[str, Any]

    @property
    def emitted(self) -> int:
        """Tokens that the target's passes gave, the one that ended the text included."""
        return sum(len(each.tokens) for each in self.rounds)

    @property
    def target_passes(self) -> int:
        return len(self.rounds)

    @property
    def drafter_passes(self) -> int:
        return sum(each.depth > 0 for each in self.rounds)

    @property
    def tokens_per_pass(self) -> float:
        """Tokens emitted per pass of the target; plain decoding has 1."""
        return self.emitted / max(1, self.target_passes)

    @property
    def accepted_per_round(self) -> float:
        """Draft tokens accepted per pass of the target: passes saved."""
        return sum(each.accepted for each in self.rounds) / max(1, self.target_passes)


SpecEvent = Started | RowRound | Finished[SpecOutput]
SpecEvents = Generator[SpecEvent, None, None]


@dataclass(frozen=True, slots=True)
class StandingRounds:
    """What stands of a batch between two rounds. A round puts a new one in place of the old in one
    assignment: Ctrl-C on whatever line finds it told, waiting to be told, or not begun.

    rounds, seconds: of every row so far.  left: rows that are not finished.  untold: events that
    are still to be told; what is told is no longer in it.
    """

    rounds: Sequence[tuple[RowRound, ...]]
    seconds: Sequence[float]
    left: Sequence[int]
    untold: Iterator[SpecEvent]

    @classmethod
    def at_start(cls, prompts: Sequence[Sequence[int]], budget: int) -> Self:
        started = [Started(row, list(ids), budget) for row, ids in enumerate(prompts)]
        return cls([()] * len(started), [0.0] * len(started), range(len(started)), iter(started))

    def after(self, each: Round, output: Callable[..., SpecOutput]) -> StandingRounds:
        """One round later; output(rounds, seconds): what a row came to."""
        rounds, seconds, new = list(self.rounds), list(self.seconds), list[SpecEvent]()
        for row_round in each.rows:
            row = row_round.row
            rounds[row] = (*rounds[row], row_round)
            seconds[row] += each.draft + each.verify + each.host
            new.append(row_round)
            if row_round.finish_reason is not None:
                new.append(Finished(row, output(rounds[row], seconds[row])))
        ended = {done.row for done in each.rows if done.finish_reason is not None}
        left = [row for row in self.left if row not in ended]
        return StandingRounds(rounds, seconds, left, iter([*self.untold, *new]))

    def interrupted(self, output: Callable[..., SpecOutput]) -> StandingRounds:
        """All rows that are left end with what they have."""
        ended = [Finished(row, output(self.rounds[row], self.seconds[row])) for row in self.left]
        return StandingRounds(self.rounds, self.seconds, (), iter([*self.untold, *ended]))
