"""Results of a generation: events while it runs, an `Output` for each row at the end."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import asdict, dataclass, field
from typing import Any, Generic, Literal, TypeVar

FinishReason = Literal["eos", "stop", "length", "interrupted", "error"]
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Commit:
    """Tokens that one forward made known in one row; the parallel lists are in position order.

    nfe: forwards of this row so far, this one included; 0 for prefilled tokens.
    positions are absolute. remasked: committed positions that this step masked again. replaced:
    those whose token it replaced, by replaced_ids. settled: nothing in front of this position
    changes any more: the first masked one, or, with a rule that masks again or replaces, the start
    of its first window, if that comes before.
    """

    row: int
    nfe: int
    positions: list[int]
    token_ids: list[int]
    confidences: list[float]
    remasked: list[int] = field(default_factory=list)
    replaced: list[int] = field(default_factory=list)
    replaced_ids: list[int] = field(default_factory=list)
    settled: int = 0


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds the engine spent while the row was in the batch: in all, inside the model, and in the
    model's first forward, which has to compute the prompt.

    What the consumer of the events does between steps is not in them.
    """

    total: float
    forward: float
    prompt: float = 0.0


@dataclass(frozen=True, slots=True)
class Output:
    """The result of one prompt.

    text: the answer, cut where a stop string begins. token_ids: its tokens, without the one that
    ended it or those that reach into the stop string. An interrupted answer holds what was
    committed, in order, masked positions left out.
    nfe: forwards this row took part in; canvases: how many canvases they computed for it, more than
    nfe only where a speculator guesses ahead.
    slots: positions committed, end-of-text padding included;
    answer_tokens: those up to and including the first end token.
    history: the commits of every step, kept on request. error: what ended a row alone that could
    not go on, None for all others.
    """

    text: str
    token_ids: list[int]
    finish_reason: FinishReason
    nfe: int
    canvases: int
    slots: int
    answer_tokens: int
    timings: Timings
    history: list[Commit] | None = None
    error: str | None = None

    @property
    def tokens_per_forward(self) -> float:
        """Answer tokens, up to and including the first end token, per forward."""
        return self.answer_tokens / self.nfe if self.nfe else 0.0

    @property
    def committed_per_forward(self) -> float:
        """All committed positions per forward, padding behind the end token included."""
        return self.slots / self.nfe if self.nfe else 0.0

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready values, the two ratios included; history and error only where there is one."""
        values = asdict(self)
        history, timings = values.pop("history"), values.pop("timings")
        error = values.pop("error")
        return {
            **values,
            "tokens_per_forward": round(self.tokens_per_forward, 4),
            "committed_per_forward": round(self.committed_per_forward, 4),
            "timings": timings,
            **({} if history is None else {"history": history}),
            **({} if error is None else {"error": error}),
        }


@dataclass(frozen=True, slots=True)
class Started:
    """A row entered the batch: its prompt and the number of masked positions behind it."""

    row: int
    prompt_ids: list[int]
    max_new_tokens: int


@dataclass(frozen=True, slots=True)
class Finished(Generic[Result]):
    """A row left the batch; the result is that of the engine that decoded it."""

    row: int
    output: Result


Event = Started | Commit | Finished[Output]
Events = Generator[Event, None, None]
