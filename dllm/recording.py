"""Runs on disk: events as JSON lines with their tokens' text, so that a replay needs no model.

Line 1 describes the run; every further line is one event, of the engine that decodes canvases or of
the one that speculates. Nothing here decodes or draws.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, Self

from dllm.errors import DllmError
from dllm.files import FileError
from dllm.jsonlog import ends_whole, new_log, read_records
from dllm.output import Commit, Event, Finished, Output, Started, Timings
from dllm.spec_streaming import SpecFollower
from dllm.streaming import Follower
from dllm.verify.output import RowRound, SpecEvent, SpecOutput

if TYPE_CHECKING:
    from dllm.config import DecodeConfig
    from dllm.verify.config import SpecConfig

SCHEMA = 2
AnyEvent = Event | SpecEvent
# what may happen in a run of each verb, by the name it has in a line
EVENTS: dict[str, dict[str, type[AnyEvent]]] = {
    "generate": {"started": Started, "commit": Commit, "finished": Finished},
    "speculate": {"started": Started, "round": RowRound, "finished": Finished},
}


class RecordingError(DllmError):
    """A file that is no recording, or a broken one."""


class Recorder:
    """Writes the events of one batch to `path`, line by line; `read_recording` reads them back."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        follower: Follower | SpecFollower,
        config: DecodeConfig | SpecConfig,
        *,
        model: str,
        prompts: Sequence[str] = (),
    ) -> None:
        """follower: of the engine that decodes; it spells the tokens."""
        self.follower: Any = follower
        verb = "generate" if isinstance(follower, Follower) else "speculate"
        self.names = {kind: name for name, kind in EVENTS[verb].items()}
        self.lines = new_log(path)  # each in the file at once: a crash leaves all up to it
        options = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
        plain = (str, int, float, tuple, type(None))  # the rest are parts given as objects
        self._write(
            dllm_recording=SCHEMA,
            verb=verb,
            model=model,
            config={k: v if isinstance(v, plain) else repr(v) for k, v in options.items()},
            prompts=list(prompts),
            stop_ids=list(getattr(follower, "stop_ids", ())),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.lines.close()

    def show(self, event: AnyEvent, seconds: float) -> None:
        """Append one event; `seconds`: what the engine has spent so far."""
        extra: dict[str, Any] = {}
        told: Any = event
        pieces = self.follower.apply(event, seconds)
        if isinstance(event, (Commit, RowRound)):
            extra["pieces"] = pieces
        elif isinstance(event, Finished):  # its history would repeat the lines above
            past: Any = {"history": None} if isinstance(event.output, Output) else {"rounds": ()}
            told = Finished(event.row, dataclasses.replace(event.output, **past))
        name = self.names[type(event)]
        self._write(event=name, seconds=round(seconds, 6), **asdict(told), **extra)

    def _write(self, **fields: Any) -> None:
        self.lines.append(fields)


class Recorded(NamedTuple):
    """An event, the seconds the engine had spent, and the pieces of text it changed, by place."""

    event: AnyEvent
    seconds: float
    pieces: dict[int, str]


@dataclass(frozen=True, slots=True)
class Recording:
    """A recorded batch. `truncated`: its last line was cut off and is left out."""

    verb: str
    model: str
    config: dict[str, Any]
    prompts: list[str]
    stop_ids: list[int]
    events: list[Recorded]
    truncated: bool

    def follower(self) -> Follower | SpecFollower:
        """The rows of such a run before its first event."""
        return follower_of(self.verb, self.stop_ids)


def follower_of(verb: str, stop_ids: Sequence[int]) -> Follower | SpecFollower:
    return SpecFollower() if verb == "speculate" else Follower(stop_ids)


def read_recording(path: str | os.PathLike[str]) -> Recording:
    """What a `Recorder` wrote to `path`. Raises RecordingError naming the line at fault."""
    name = os.fspath(path)
    try:
        objects = [record for _, record in read_records(path)]
        truncated = not ends_whole(path)
    except FileError as error:
        raise RecordingError(str(error)) from error
    header = objects[0] if objects else {}
    if header.get("dllm_recording") != SCHEMA:
        raise RecordingError(
            f"{name}: expected a recording (--record FILE) of version {SCHEMA}, "
            f"found version {header.get('dllm_recording')}"
        )
    try:
        fields = {key: header[key] for key in ("verb", "model", "config", "prompts", "stop_ids")}
    except KeyError as error:
        raise RecordingError(f"{name}, line 1: no {error}") from error
    if header["verb"] not in list(EVENTS):  # which takes what cannot be hashed
        raise RecordingError(
            f"{name}, line 1: verb {header['verb']!r}: expected one of {', '.join(EVENTS)}"
        )
    events = list(_events(name, objects[1:], header["verb"], header["stop_ids"]))
    return Recording(**fields, events=events, truncated=truncated)


def _events(
    path: str, objects: Sequence[Any], verb: str, stop_ids: Sequence[int]
) -> Iterator[Recorded]:
    """The events of a recording's lines, followed once to see that they fit together."""
    follower: Any = follower_of(verb, stop_ids)
    for number, fields in enumerate(objects, 2):
        try:
            recorded = _parse(fields, EVENTS[verb])
            follower.apply(*recorded)
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            problem = f"{path}, line {number}: no event of this run ({error})"
            raise RecordingError(problem) from error
        yield recorded


def _parse(fields: dict[str, Any], kinds: Mapping[str, type[AnyEvent]]) -> Recorded:
    fields = dict(fields)
    kind, seconds = kinds[fields.pop("event")], float(fields.pop("seconds"))
    pieces = {int(place): str(piece) for place, piece in fields.pop("pieces", {}).items()}
    if kind is RowRound:
        fields |= {"tokens": tuple(fields["tokens"]), "sources": tuple(fields["sources"])}
    elif kind is Finished:
        output = {**fields["output"], "text": str(fields["output"]["text"])}
        if "timings" in output:
            fields["output"] = Output(**{**output, "timings": Timings(**output["timings"])})
        else:
            past: Any = {"seconds": float(output["seconds"]), "rounds": ()}
            fields["output"] = SpecOutput(**{**output, **past})
    return Recorded(kind(**fields), seconds, pieces)


class ReplayView(Protocol):
    """Shows events that bring their pieces of text with them: `LiveView`, or `SpecView`."""

    def show(self, event: Any, seconds: float, pieces: Mapping[int, str] | None = None) -> None: ...


def replay(recording: Recording, view: ReplayView) -> None:
    """Show a recorded batch; the view keeps the pace."""
    for event, seconds, pieces in recording.events:
        view.show(event, seconds, pieces)
