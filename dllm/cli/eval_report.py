"""The verb that shows what runs of the evaluation suite came to: eval report."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from typer import Option

from dllm.cli.app import eval_app, verb
from dllm.cli.fields import real
from dllm.errors import DllmError
from dllm.files import destination, write_text

if TYPE_CHECKING:
    from dllm.eval.tables import TextTable

WIDE = 160  # columns where output is not a terminal


@verb(eval_app)
def report(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Run directories, or summary.json files.")
    ],
    against: Annotated[
        Path | None, Option(help="A run to compare with: what does each RUN gain over it?")
    ] = None,
    tasks: Annotated[
        str | None, Option(help="Names or specs of tasks, joined by commas; default: all.")
    ] = None,
    n: Annotated[str | None, Option(help="Sizes, joined by commas; default: all.")] = None,
    reach: Annotated[
        float | None,
        Option(help="Tokens per forward that areas (LPA) go up to.", min=1, callback=real),
    ] = None,
    markdown: Annotated[Path | None, Option(help="Write the tables to this file.")] = None,
    figure: Annotated[
        Path | None, Option(help="Draw accuracy against parallelism, .png or .svg.")
    ] = None,
) -> None:
    """Show scores, parallelism, losses, times and errors of runs; compare them.

    With --tasks the figure has a panel for each of them.
    """
    from dllm.eval.report import read_summary
    from dllm.eval.report import report as tables_of

    if markdown is not None:
        destination(markdown)
    names = _names([*runs, *([against] if against else [])])
    found = [(name, read_summary(path)) for name, path in zip(names, runs)]
    other = (names[-1], read_summary(against)) if against else None
    words = None if tasks is None else split_words(tasks)
    sizes = None if n is None else _sizes(n)
    tables = tables_of(found, against=other, tasks=words, n=sizes, reach=reach)
    if figure is not None:
        from dllm.eval.figures import draw

        draw([*found, *([other] if other else [])], figure, tasks=words, n=sizes)
    if markdown is not None:
        write_text(markdown, "\n".join(table.markdown() for table in tables))
    show(tables)


def show(tables: Sequence[TextTable]) -> None:
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = WIDE
    for table in tables:
        console.print(table.rich())


def split_words(text: str) -> list[str]:
    """ "copy,shuffle:n=4,surface=infill" is two: a comma before key=value belongs to a spec."""
    return [word.strip() for word in re.split(r",(?!\s*\w+=)", text) if word.strip()]


def _sizes(text: str) -> list[int]:
    words = text.split(",")
    if not all(word.strip().isdecimal() for word in words):
        raise DllmError(f"--n {text!r}: expected whole numbers joined by commas")
    return [int(word) for word in words]


def _names(paths: list[Path]) -> list[str]:
    """What to call runs: their directories, or the whole path where two are called alike."""
    short = [path.parent.name if path.is_file() else path.name for path in paths]
    return [
        name if short.count(name) == 1 and name else str(path) for name, path in zip(short, paths)
    ]
