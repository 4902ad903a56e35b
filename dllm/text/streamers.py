"""Driver of transformers streamers: text is put as soon as it can no longer change."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, cast

from dllm.decoding.driving import drive
from dllm.errors import DllmError
from dllm.output import Event, Events, Finished, Output, Started
from dllm.text.following import Follower

if TYPE_CHECKING:
    from dllm.engine import Engine
    from dllm.text.codec import TextCodec


class Streamer(Protocol):
    """A streamer of transformers; one that also has `put_draft(value)` sees every step."""

    def put(self, value: Any) -> None: ...
    def end(self) -> None: ...


def feed(events: Events, streamer: Streamer, engine: Engine, *, stop: Sequence[str] = ()) -> Output:
    """Drive a transformers streamer with the events of one prompt.

    put(prompt ids); then put(ids) whenever more of the answer can no longer change, followed by
    put_draft(ids of the rest, masked ones too) where the streamer has it; end() in any case.
    A rule that masks tokens again lets nothing be put of a window at work. `stop`: the
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
