"""The bar that says how far the reading of weights is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from dllm.models.reading import Told

LEAST = 2**28  # bytes; fewer are read before a bar is seen


@contextmanager
def bar(name: str, total: int) -> Iterator[Told]:
    """What takes the number of bytes just read, of `total`, and shows it on a terminal's stderr."""
    console = Console(stderr=True)
    with Progress(
        TextColumn("loading {task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=total < LEAST or not console.is_terminal,
        transient=True,
    ) as progress:
        yield partial(progress.advance, progress.add_task(name, total=total))
