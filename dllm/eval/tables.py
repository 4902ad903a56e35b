"""A table described once, to be shown in a terminal or written as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from textwrap import fill

from rich.box import SIMPLE_HEAD
from rich.table import Table as RichTable
from rich.text import Text

NONE = "–"  # where there is nothing to say


@dataclass(frozen=True)
class TextTable:
    """Cells as text. texts: how many of the first columns are names, set to the left."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    texts: int = 1

    def filled(self) -> TextTable:
        """Without the columns that say nothing in any row, but for the first one."""
        if not self.rows:
            return self
        kept = [i for i, cells in enumerate(zip(*self.rows)) if i == 0 or set(cells) - {"", NONE}]
        columns, *rows = (tuple(row[i] for i in kept) for row in (self.columns, *self.rows))
        texts = sum(i < self.texts for i in kept)
        return replace(self, columns=columns, rows=tuple(rows), texts=texts)

    def markdown(self) -> str:
        def line(cells: Sequence[str]) -> str:
            return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"

        rule = [":--" if i < self.texts else "--:" for i in range(len(self.columns))]
        lines = [line(self.columns), line(rule), *map(line, self.rows)]
        notes = "".join(f"\n- {note}" for note in self.notes)
        return f"## {self.title}\n\n" + "\n".join(lines) + "\n" + (notes and notes + "\n")

    def rich(self) -> RichTable:
        table = RichTable(
            title=Text(self.title, "bold"),
            title_justify="left",
            caption=Text("\n".join(self.notes), "dim") if self.notes else None,
            caption_justify="left",
            box=SIMPLE_HEAD,
        )
        for i, column in enumerate(self.columns):
            text = i < self.texts
            width = max(map(len, column.split())) + 2  # of a head in several lines
            table.add_column(
                Text(column if text else fill(column, width)),
                justify="left" if text else "right",
                overflow="fold",
                no_wrap=not text,  # numbers stay whole, names give way
            )
        for row in self.rows:
            table.add_row(*map(Text, row))
        return table


def percent(share: float | None) -> str:
    return NONE if share is None else f"{100 * share:.1f}"


def number(value: float | None, digits: int = 2) -> str:
    return NONE if value is None else f"{value:.{digits}f}"


def span(interval: tuple[float, float]) -> str:
    return "–".join(f"{100 * limit:.1f}" for limit in interval)


def signed(points: float) -> str:
    return f"{points:+.1f}"
