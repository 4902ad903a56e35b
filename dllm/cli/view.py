"""The live view of canvases: what is decided, what is new and what is masked, in the terminal.

Knows the rows that a `Follower` rebuilds; knows no engine, no model and no tokenizer.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, Self

from rich.box import HORIZONTALS
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.text import Text

from dllm.cli.options import DELAY
from dllm.cli.terminal import printable
from dllm.output import Commit, Event, Started
from dllm.text.following import AnswerSoFar, Follower

LONGEST = 30.0  # seconds that a step stays there because the engine, or a recording, took as long
FPS = 20
MASKED, END = " ·", "■"
NEW = "black on bright_green"
AGES = (NEW, "bright_green", "green")  # of tokens committed in this forward, one or two before
LEGEND = f"[dim]· undecided[/]  [not dim {NEW}]new in this forward[/]  [dim]■ end[/]"
REASONS = {
    "eos": "eos: the model ended its answer",
    "stop": "stop: a stop string was reached",
    "length": "length: every token is used",
    "interrupted": "interrupted",
}


class RowsView:
    """The rows of a batch while they are decoded, and what they came to when they are done.

    In a terminal a step stays for at least `delay` seconds; `speed` divides that. Elsewhere, or
    when `live` is False, only what came of it is printed.
    """

    def __init__(
        self,
        follower: Any,
        titles: Sequence[str] = (),
        *,
        delay: float = DELAY,
        speed: float = 1.0,
        live: bool = True,
        console: Console | None = None,
    ) -> None:
        """follower: rebuilds the rows from events.  titles: of the rows, as far as they go."""
        self.follower, self.titles, self.delay, self.speed = follower, titles, delay, speed
        self.console = console or Console(highlight=False)
        self.live: Live | None = None
        if live and self.console.is_terminal and not self.console.is_dumb_terminal:
            self.live = Live(console=self.console, auto_refresh=False, transient=True)
        self.began, self.seconds = time.perf_counter(), 0.0  # of the step on the screen

    def __enter__(self) -> Self:
        if self.live is not None:
            self.live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self.live is not None:
            self.live.stop()
        if kind is None and self.follower.rows:
            self.print_result()

    def pause(self, seconds: float) -> None:
        """Wait until the step on the screen has had its time. seconds: the engine's, so far."""
        wait = max(self.delay, min(seconds - self.seconds, LONGEST)) / self.speed
        time.sleep(max(0.0, self.began + wait - time.perf_counter()))
        self.began, self.seconds = time.perf_counter(), seconds

    def title(self, n: int) -> list[Text]:
        """The prompt of a row on one line, or nothing."""
        if n >= len(self.titles):
            return []
        title = " ".join(printable(self.titles[n]).split())
        return [Text(f"› {title}", "dim", no_wrap=True, overflow="ellipsis")]

    def print_result(self) -> None:
        """Answers on stdout, their numbers on stderr."""
        raise NotImplementedError


class LiveView(RowsView):
    """The canvases of a batch; see `RowsView`."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.drawn = 0.0  # when the last frame was

    def show(self, event: Event, seconds: float, pieces: Mapping[int, str] | None = None) -> None:
        """Take in an event; draw when it completes a step. `seconds`: the engine's, so far."""
        if self.live is None:
            self.follower.apply(event, seconds, pieces)
            return
        begins_step = isinstance(event, Commit) and self.follower.step_is_complete()
        self.follower.apply(event, seconds, pieces)
        if begins_step or all(row.output for row in self.follower.rows.values()):
            self.pause(seconds)  # for the step on the screen
        due = isinstance(event, Started) or time.perf_counter() - self.drawn >= 1 / FPS
        if due and self.follower.step_is_complete():
            self.live.update(self.render(), refresh=True)
            self.drawn = time.perf_counter()

    def render(self) -> RenderableType:
        """The rows as they are now, cut to what fits on the screen."""
        rows, space = self.follower.rows, self.console.height - 2
        fitting = max(1, min(len(rows), space // 4))  # a row needs two rules, its title and a line
        panels: list[RenderableType] = [
            self._panel(n, max(1, space // fitting - 3)) for n in list(rows)[:fitting]
        ]
        if len(rows) > fitting:
            panels.append(Text(f"  … and {len(rows) - fitting} more", style="dim"))
        return Group(*panels)

    def _panel(self, n: int, height: int | None = None) -> Panel:
        """Numbers, prompt and text of a row; below, why it ended, or the legend for the first."""
        row = self.follower.rows[n]
        if row.output is None:
            below = LEGEND if row is next(iter(self.follower.rows.values())) else None
            text = self.answer(row)
        else:
            below = f"[dim]{REASONS[row.output.finish_reason]}[/]"
            text = Text(printable(row.output.text))
        return Panel(
            Group(*self.title(n), text if height is None else self._crop(text, height)),
            box=HORIZONTALS,
            width=self._width(),
            title=stats([row], self.follower),
            title_align="left",
            subtitle=below,
            subtitle_align="left",
            border_style="dim",
        )

    def _width(self) -> int:
        """Leaves room for the ^C that a terminal echoes: in a new line it would spoil the frame."""
        return max(20, self.console.width - 3)

    def answer(self, row: AnswerSoFar) -> Text:
        """The answer as it stands; what is behind its first end token is padding and not shown."""
        styles = dict(zip(reversed(row.steps), AGES))
        end = self.follower.end(row)
        text = Text()
        for token, piece, forward in zip(row.tokens[:end], row.pieces, row.forwards):
            if token is None:
                begins_line = not text or text.plain.endswith("\n")
                text.append(MASKED.lstrip() if begins_line else MASKED, "dim")
                continue
            style = styles.get(forward, "")
            word = printable(piece).lstrip(" ") or piece  # a word's space stays plain
            text.append(" " * (len(piece) - len(word)))
            text.append("¶\n" if word == "\n" and style == NEW else word, style)
        if end < len(row.tokens):
            text.append(" " if text else "")
            text.append(END, styles.get(row.forwards[end], "dim"))
        return text

    def _crop(self, text: Text, height: int) -> Text:
        """The screenful that ends at the newest tokens: all behind them may be masked."""
        lines = text.wrap(self.console, self._width() - 4)
        new = [i for i, line in enumerate(lines) if any(span.style == NEW for span in line.spans)]
        end = min(len(lines), max(height, new[-1] + 2 if new else 0))
        return Text("\n").join(lines[max(0, end - height) : end])

    def print_result(self) -> None:
        rows = self.follower.rows
        if self.live is not None:
            self.console.print(Group(*map(self._panel, rows)))
            return
        for row in rows.values():
            text = self.follower.text(row)
            steered = self.console.is_terminal  # a file or a pipe gets what the model wrote
            print(printable(text) if steered else text, file=self.console.file)
        line = stats(list(rows.values()), self.follower)
        reasons = sorted({row.output.finish_reason for row in rows.values() if row.output})
        Console(stderr=True, highlight=False).print(
            f"{line} · finished: {', '.join(reasons)}", soft_wrap=True
        )


def stats(rows: Sequence[AnswerSoFar], follower: Follower) -> str:
    """Forwards, tokens and speed of some rows of a batch, as rich markup."""
    nfe = max(row.output.nfe if row.output else row.steps[-1] for row in rows)
    tokens = sum(map(follower.count, rows))
    seconds = max(row.seconds for row in rows)
    numbers = {
        "forwards": str(nfe),
        "tokens": str(tokens),
        "tokens/forward": f"{tokens / nfe:.1f}" if nfe else "–",
        "tokens/s": f"{tokens / seconds:.0f}" if seconds and nfe else "–",
    }
    return " · ".join(f"{name} [not dim bold]{value}[/]" for name, value in numbers.items())
