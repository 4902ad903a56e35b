"""Runs on disk: events as JSON lines with their tokens' text, so that a replay needs no model.

Line 1 describes the run; every further line is one event. Nothing here decodes or draws.
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
from dllm.streaming import Follower

if TYPE_CHECKING:
    from dllm.config import DecodeConfig
    from dllm.engine import Engine

SCHEMA = 1


class RecordingError(DllmError):
    """A file that is no recording, or a broken one."""


class Recorder:
    """Writes the events of one batch to `path`, line by line; `read_recording` reads them back."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        engine: Engine,
        config: DecodeConfig,
        *,
        model: str,
        prompts: Sequence[str] = (),
    ) -> None:
        self.follower = Follower.of(engine)
        self.lines = new_log(path)  # each in the file at once: a crash leaves all up to it
        options = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
        plain = (str, int, float, tuple, type(None))  # the rest are parts given as objects
        self._write(
            dllm_recording=SCHEMA,
            model=model,
            config={k: v if isinstance(v, plain) else repr(v) for k, v in options.items()},
            prompts=list(prompts),
            stop_ids=list(engine.model.spec.stop_ids),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.lines.close()

    def show(self, event: Event, seconds: float) -> None:
        """Append one event; `seconds`: what the engine has spent so far."""
        extra: dict[str, Any] = {}
        pieces = self.follower.apply(event, seconds)
        if isinstance(event, Commit):
            extra["pieces"] = pieces
        elif isinstance(event, Finished):  # its history would repeat the lines above
            event = Finished(event.row, dataclasses.replace(event.output, history=None))
        kind = type(event).__name__.lower()
        self._write(event=kind, seconds=round(seconds, 6), **asdict(event), **extra)

    def _write(self, **fields: Any) -> None:
        self.lines.append(fields)


class Recorded(NamedTuple):
    """An event, the seconds the engine had spent, and the pieces of text it changed, by place."""

    event: Event
    seconds: float
    pieces: dict[int, str]


@dataclass(frozen=True, slots=True)
class Recording:
    """A recorded batch. `truncated`: its last line was cut off and is left out."""

    model: str
    config: dict[str, Any]
    prompts: list[str]
    stop_ids: list[int]
    events: list[Recorded]
    truncated: bool


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
            f"{name}: expected a recording (`dllm generate --record`) of version {SCHEMA}, "
            f"found version {header.get('dllm_recording')}"
        )
    try:
        fields = {key: header[key] for key in ("model", "config", "prompts", "stop_ids")}
    except KeyError as error:
        raise RecordingError(f"{name}, line 1: no {error}") from error
    events = list(_events(name, objects[1:], header["stop_ids"]))
    return Recording(**fields, events=events, truncated=truncated)


def _events(path: str, objects: Sequence[Any], stop_ids: Sequence[int]) -> Iterator[Recorded]:
    """The events of a recording's lines, followed once to see that they fit together."""
    follower = Follower(stop_ids)
    for number, fields in enumerate(objects, 2):
        try:
            recorded = _parse(fields)
            follower.apply(*recorded)
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            problem = f"{path}, line {number}: no event of this run ({error})"
            raise RecordingError(problem) from error
        yield recorded


def _parse(fields: dict[str, Any]) -> Recorded:
    fields = dict(fields)
    kind, seconds = fields.pop("event"), float(fields.pop("seconds"))
    pieces = {int(place): str(piece) for place, piece in fields.pop("pieces", {}).items()}
    if kind == "finished":
        output = fields.pop("output")
        output["timings"] = Timings(**output["timings"])
        fields["output"] = Output(**output)
    return Recorded(_EVENTS[kind](**fields), seconds, pieces)


_EVENTS: dict[str, type[Event]] = {"started": Started, "commit": Commit, "finished": Finished}


class ReplayView(Protocol):
    """Shows events that bring their pieces of text with them: `LiveView`, for one."""

    def show(
        self, event: Event, seconds: float, pieces: Mapping[int, str] | None = None
    ) -> None: ...


def replay(recording: Recording, view: ReplayView) -> None:
    """Show a recorded batch; the view keeps the pace."""
    for event, seconds, pieces in recording.events:
        view.show(event, seconds, pieces)
