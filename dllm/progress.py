"""Progress display: a bar for everything that is counted, on a terminal's stderr."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

LEAST = 2**28  # bytes of weights; fewer are read before a bar is seen


class ProgressDisplay:
    """Bars while something runs; where stderr is no terminal, or `hidden`, nothing is shown.

    stays: whether they are left on the screen at the end.  of_bytes: whether bytes are counted.
    """

    def __init__(self, *, hidden: bool = False, stays: bool = False, of_bytes: bool = False):
        self.console = Console(stderr=True, highlight=False)
        counted = (DownloadColumn(), TransferSpeedColumn()) if of_bytes else (MofNCompleteColumn(),)
        columns: tuple[ProgressColumn, ...] = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            *counted,
            TextColumn("{task.fields[note]}", markup=False),
            TimeRemainingColumn(),
        )
        hidden = hidden or not self.console.is_terminal
        self._bars = Progress(*columns, console=self.console, transient=not stays, disable=hidden)
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._tasks:  # else it prints an empty line
            self._bars.stop()

    def report(self, what: str, done: int, total: int | None, note: str = "") -> None:
        """`done` of `total` of something are done. note: stands behind the numbers."""
        if what not in self._tasks:
            self._bars.start()
            self._tasks[what] = self._bars.add_task(what, total=total, note=note)
        self._bars.update(self._tasks[what], completed=done, total=total, note=note)


@contextmanager
def loading_bar(name: str, total: int) -> Iterator[Callable[[int], None]]:
    """What takes the number of bytes just read, of the `total` of a checkpoint."""
    done = 0
    with ProgressDisplay(hidden=total < LEAST, of_bytes=True) as display:

        def read(count: int) -> None:
            nonlocal done
            done += count
            display.report(f"loading {name}", done, total)

        yield read
