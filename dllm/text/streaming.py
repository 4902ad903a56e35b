"""From events to what is decided: the canvas rebuilt, transformers streamers, JSON.

Knows events and how tokens are spelled; knows no model and no sampler. The terminal view (view.py)
and the recorder (recording.py) are built on it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, cast

from dllm.decoding.driving import drive
from dllm.errors import DllmError
from dllm.output import Event, Events, Finished, Output, Started
from dllm.text.spelling import Speller

if TYPE_CHECKING:
    from dllm.engine import Engine, TextCodec


@dataclass(slots=True)
class AnswerSoFar:
    """The answer of one row so far; a hole has no token, forward 0 and an empty piece.

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
        for position, token in zip(event.positions, event.token_ids, strict=True):
            place = position - len(row.prompt_ids)
            row.tokens[place], row.forwards[place] = token, event.nfe
        for position in event.remasked:
            place = position - len(row.prompt_ids)
            row.tokens[place], row.forwards[place] = None, 0
        row.steps.append(event.nfe)
        if self.speller is not None:
            now = self.speller.pieces(row.tokens)
            pieces = {i: piece for i, piece in enumerate(now) if piece != row.pieces[i]}
        changed = dict(pieces or {})
        for place, piece in changed.items():
            row.pieces[place] = piece
        return changed

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


class Streamer(Protocol):
    """What transformers calls a streamer; one that also has `put_draft(value)` sees every step."""

    def put(self, value: Any) -> None: ...
    def end(self) -> None: ...


def feed(events: Events, streamer: Streamer, engine: Engine, *, stop: Sequence[str] = ()) -> Output:
    """Drive a transformers streamer with the events of one prompt.

    put(prompt ids); then put(ids) whenever more of the answer can no longer change, followed by
    put_draft(ids of the rest, the mask id in holes) where the streamer has it; end() in any case.
    A rule that makes tokens holes again lets nothing be put of a window at work. `stop`: the
    request's stop strings, so that nothing is put that they would cut off again. All that is put
    after the prompt is `Output.token_ids`. Ctrl-C in the streamer ends the row as in the engine.
    """
    try:
        done, interrupted = drive(events, Feeder(streamer, engine, stop))
    finally:
        streamer.end()  # also after an error: a thread may be waiting for more
    if interrupted and not done:
        raise KeyboardInterrupt
    if not done:
        raise DllmError("the events ended before their prompt was finished")
    output: Output = done[0]
    return output


class Feeder:
    """The consumer behind `feed`."""

    def __init__(self, streamer: Streamer, engine: Engine, stop: Sequence[str]) -> None:
        self.streamer, self.stop, self.codec = streamer, stop, engine.text
        self.mask_id = engine.model.spec.mask_id
        self.follower = Follower(engine.model.spec.stop_ids)
        self.put_draft = getattr(streamer, "put_draft", None)
        self.sent = 0  # tokens of the answer

    def show(self, event: Event, seconds: float) -> None:
        """Put what the event lets be put."""
        self.follower.apply(event)
        if len(self.follower.rows) > 1:
            raise DllmError("a streamer takes one prompt: give a single one, not a batch")
        row = self.follower.rows[event.row]
        end = self.follower.end(row)
        if isinstance(event, Started):
            self._put(event.prompt_ids)
        elif isinstance(event, Finished):
            self._answer(event.output.token_ids)
        else:
            settled = max(0, event.settled - len(row.prompt_ids))
            known = cast("list[int]", row.tokens[: min(settled, end)])
            self._answer(_uncut(known, self.stop, self.codec))
            rest = row.tokens[self.sent : end]
            if self.put_draft is not None and rest:
                draft = [self.mask_id if token is None else token for token in rest]
                self.put_draft(_tensor(draft))

    def _answer(self, ready: Sequence[int]) -> None:
        """Put those of the answer's tokens that are `ready` and were not put yet."""
        new, self.sent = ready[self.sent :], max(self.sent, len(ready))
        if new:
            self._put(new)

    def _put(self, ids: Sequence[int]) -> None:
        self.streamer.put(_tensor(ids))


def _tensor(ids: Sequence[int]) -> Any:
    import torch  # late: a recording is replayed without it

    return torch.tensor(ids, dtype=torch.long)


def _uncut(tokens: list[int], stop: Sequence[str], codec: TextCodec | None) -> list[int]:
    """The tokens less those that a stop string may still cut off."""
    if codec is None or not stop:
        return tokens
    text = codec.decode(tokens)
    safe = min(_safe_length(text, string) for string in stop)
    while tokens and len(codec.decode(tokens)) > safe:
        tokens.pop()
    return tokens


def _safe_length(text: str, stop: str) -> int:
    """How much of `text` stands before `stop`, or before what may become it."""
    if (at := text.find(stop)) >= 0:
        return at
    begun = (n for n in range(len(stop) - 1, 0, -1) if text.endswith(stop[:n]))
    return len(text) - next(begun, 0)


def output_to_dict(output: Output) -> dict[str, Any]:
    """An output as JSON-ready values, the two ratios included; the history only if it was kept."""
    values = asdict(output)
    history = values.pop("history")
    timings = values.pop("timings")
    return {
        **values,
        "tokens_per_forward": round(output.tokens_per_forward, 4),
        "slots_per_forward": round(output.committed_per_forward, 4),
        "timings": timings,
        **({} if history is None else {"history": history}),
    }
