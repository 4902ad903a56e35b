"""Recordings: events as JSON lines with their tokens' text, so that a replay needs no model.

Line 1 describes the run; every further line is one event, of the engine that decodes canvases or of
the one that speculates. Nothing here decodes or draws.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import inf
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, Self, get_origin, get_type_hints

from dllm.errors import DllmError
from dllm.files import FileError
from dllm.jsonlog import ends_whole, new_log, read_records
from dllm.output import Commit, Event, Finished, Output, Started, Timings
from dllm.registry import describe, fits
from dllm.text.following import AnswerSoFar, Follower, SpecFollower, SpecRow
from dllm.verify.output import RowRound, SpecEvent, SpecOutput

if TYPE_CHECKING:
    from dllm.config import DecodeConfig
    from dllm.verify.config import SpecConfig

SCHEMA = 2
TEXTS, IDS = list[str], list[int]
HEADER = {"verb": str, "model": str, "config": dict, "prompts": TEXTS, "stop_ids": IDS}
LIMIT = 2**28  # bytes of a file that is read
ROWS, TOKENS = 4096, 2**22  # of a batch: the canvases are built from a few numbers
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
        plain = (str, int, float, tuple, type(None))  # the rest are components given as objects
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
    """The recording that `path` holds. Raises RecordingError naming the line at fault.

    Time and memory are bounded by the size of the file, which is at most `LIMIT`.
    """
    name = os.fspath(path)
    try:
        if os.path.getsize(path) > LIMIT:
            raise FileError(f"{name}: expected at most {LIMIT / 2**20:.0f} MiB")
        lines = read_records(path)
        _, header = next(lines, (1, {}))
        if header.get("dllm_recording") != SCHEMA:
            raise RecordingError(
                f"{name}: expected a recording (--record FILE) of version {SCHEMA}, "
                f"found version {header.get('dllm_recording')!r:.99}"
            )
        fields: dict[str, Any] = {}
        for key, hint in HEADER.items():
            fields[key] = header.get(key)
            if not fits(fields[key], hint):
                raise RecordingError(f"{name}, line 1: {key} is {fields[key]!r:.99}")
        if fields["verb"] not in EVENTS:
            known = ", ".join(EVENTS)
            raise RecordingError(
                f"{name}, line 1: verb {fields['verb']!r:.99}: expected one of {known}"
            )
        events = list(_events(name, lines, fields["verb"], fields["stop_ids"]))
        "".join(fields["prompts"]).encode()
        truncated = not ends_whole(path)
    except FileError as error:
        raise RecordingError(str(error)) from error
    except OSError as error:
        raise RecordingError(f"{name}: {error.strerror}") from error
    except UnicodeEncodeError as error:
        raise RecordingError(f"{name}, line 1: prompts that are no texts ({error})") from error
    return Recording(**fields, events=events, truncated=truncated)


def _events(
    path: str, lines: Iterable[tuple[int, dict[str, Any]]], verb: str, stop_ids: Sequence[int]
) -> Iterator[Recorded]:
    """The events of a recording's lines, followed once to see that they fit together."""
    follower: Any = follower_of(verb, stop_ids)
    budget = TOKENS
    for number, fields in lines:
        try:
            recorded = _parse(fields, EVENTS[verb])
            budget -= _check(recorded, follower.rows, budget)
            follower.apply(*recorded)
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            reason = f"no {error}" if isinstance(error, KeyError) else error
            problem = f"{path}, line {number}: no event of this run ({reason!s:.200})"
            raise RecordingError(problem) from error
        yield recorded


def _parse(fields: dict[str, Any], kinds: Mapping[str, type[AnyEvent]]) -> Recorded:
    fields = dict(fields)
    kind, seconds = kinds[fields.pop("event")], fields.pop("seconds")
    pieces = {int(place): piece for place, piece in fields.pop("pieces", {}).items()}
    if kind is Finished:
        output = dict(fields["output"])
        if "timings" in output:
            output["timings"] = _typed(Timings, output["timings"])
            fields["output"] = _typed(Output, output)
        else:
            fields["output"] = _typed(SpecOutput, {**output, "rounds": ()})
    event = _typed(kind, fields)
    if not (fits(seconds, float) and 0 <= seconds < inf):
        raise ValueError(f"seconds={seconds!r:.99}")
    if not fits(list(pieces.values()), list[str]):
        raise ValueError("pieces that are no texts")
    return Recorded(event, seconds, pieces)


def _typed(cls: type[Any], fields: dict[str, Any]) -> Any:
    """`cls` made of exactly its fields, each of its type; JSON has lists where it has tuples."""
    values = dict(fields)
    for name, hint in get_type_hints(cls).items():
        if get_origin(hint) is tuple and isinstance(values.get(name), list):
            values[name] = tuple(values[name])
        if name in values and not fits(values[name], hint):
            raise ValueError(f"{name}={values[name]!r:.99}: expected {describe(hint)}")
    return cls(**values)


def _check(recorded: Recorded, rows: Mapping[int, AnswerSoFar | SpecRow], budget: int) -> int:
    """Tokens that the event adds to the canvases; ValueError where it does not fit the `rows`, or
    the `budget` for more tokens.
    """
    event, _, pieces = recorded
    if isinstance(event, Started):
        if event.row in rows or not 0 <= event.row < ROWS:
            raise ValueError(f"row {event.row} begins")
        if not 0 <= event.max_new_tokens <= budget:
            raise ValueError(f"max_new_tokens={event.max_new_tokens}: expected at most {budget}")
        return event.max_new_tokens
    row = rows[event.row]
    if row.output is not None:
        raise ValueError(f"row {event.row} has ended")
    places, size = list(pieces), 0
    if isinstance(event, Finished):
        event.output.text.encode()
    elif isinstance(event, RowRound):
        size = len(row.pieces) + len(event.tokens)
    elif isinstance(row, AnswerSoFar):
        changed = (*event.positions, *event.remasked, *event.replaced)
        places += [at - len(row.prompt_ids) for at in changed]
        size = len(row.tokens)
    for place in places:
        if not 0 <= place < size:
            raise ValueError(f"place {place} of {size}")
    "".join(pieces.values()).encode()  # half of a surrogate pair cannot be shown
    return 0


class ReplayView(Protocol):
    """Shows events that bring their pieces of text with them: `LiveView`, or `SpecView`."""

    def show(self, event: Any, seconds: float, pieces: Mapping[int, str] | None = None) -> None: ...


def replay(recording: Recording, view: ReplayView) -> None:
    """Show a recorded batch; the view keeps the pace."""
    for event, seconds, pieces in recording.events:
        view.show(event, seconds, pieces)
