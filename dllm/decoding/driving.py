"""Driver of events: consumers see them all, and Outputs are kept whatever happens."""

from __future__ import annotations

import inspect
import time
from collections.abc import Generator, Iterator
from itertools import chain
from typing import Any, Protocol

from dllm.output import Finished

Stream = Generator[Any, None, None]  # events of an engine, those of its rows' ends `Finished`


class Consumer(Protocol):
    """Is shown every event of an engine, with the seconds that it has spent so far."""

    def show(self, event: Any, seconds: float) -> None: ...


def drive(events: Stream, *consumers: Consumer) -> tuple[dict[int, Any], bool]:
    """Show all events to all consumers; the outputs by row, and whether Ctrl-C cut it short.

    Ctrl-C while a consumer draws or waits ends the rows as Ctrl-C in the engine does: with what is
    committed. Rows without an output are those of a run that it cut before it began, or twice.
    """
    done: dict[int, Any] = {}
    event: Any = None  # in hand
    waiting = iter(consumers)  # those that have not been shown it
    pending: Iterator[Any] = events
    spent, interrupted = 0.0, False
    while True:
        try:
            began = time.perf_counter()
            for event in pending:
                spent += time.perf_counter() - began
                if isinstance(event, Finished):
                    done[event.row] = event.output
                    interrupted |= event.output.finish_reason == "interrupted"
                for consumer in waiting:
                    consumer.show(event, spent)
                event, waiting = None, iter(consumers)
                began = time.perf_counter()
            return done, interrupted
        except KeyboardInterrupt as interrupt:
            interrupted = True
            if inspect.getgeneratorstate(events) == inspect.GEN_CLOSED:
                return done, interrupted
            pending = chain([] if event is None else [event], _cut(events, interrupt))


def _cut(events: Stream, interrupt: KeyboardInterrupt) -> Iterator[Any]:
    """What the engine tells when the interrupt is raised where it stands."""
    try:
        yield events.throw(interrupt)
    except StopIteration:  # every row had ended
        return
    yield from events
