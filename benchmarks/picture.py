"""Draw docs/decoding.svg: a word problem after each of its forwards, as the live view shows it.

Run: python -m benchmarks.picture
"""

from __future__ import annotations

import io

from rich.console import Console, Group
from rich.padding import Padding
from rich.table import Table
from rich.terminal_theme import TerminalTheme
from rich.text import Text

import dllm
from benchmarks.common import DOCS
from dllm.cli.view import LiveView
from dllm.output import Commit, Finished
from dllm.text.following import Follower

PROMPT = (
    "Leo has 6 shells. Leo finds 8 more. Leo loses 5. Leo gets 7 from Mia. "
    "How many shells does Leo have now?"
)
TARGET = DOCS / "decoding.svg"
COLUMNS = 2
DARK, LIGHT, GREEN, BRIGHT = (24, 26, 31), (214, 217, 222), (78, 154, 90), (126, 231, 135)
THEME = TerminalTheme(
    DARK, LIGHT, [DARK, GREEN, GREEN, GREEN, GREEN, GREEN, GREEN, LIGHT], [DARK, *[BRIGHT] * 7]
)


def main() -> None:
    engine = dllm.load("tiny")
    follower = Follower.of(engine)
    view = LiveView(follower)
    frames, end = [], Text()
    for event in engine.stream(PROMPT, max_new_tokens=32):
        follower.apply(event)
        if isinstance(event, Commit):
            title = Text(f"forward {event.nfe}", "dim")
            frames.append(Padding(Group(title, view.answer(follower.rows[0])), (1, 2, 0, 2)))
        elif isinstance(event, Finished):
            count, nfe = event.output.answer_tokens, event.output.nfe
            end = Text(f"{count} tokens in {nfe} forwards", "bold")
    grid = Table.grid()
    for at in range(0, len(frames), COLUMNS):
        grid.add_row(*frames[at : at + COLUMNS])
    console = Console(record=True, width=84, file=io.StringIO(), force_terminal=True)
    console.print(Padding(Text(PROMPT), (1, 2, 0, 2)), grid, Padding(end, (1, 2)))
    TARGET.parent.mkdir(exist_ok=True)
    console.save_svg(str(TARGET), title="dllm generate", theme=THEME)
    print(TARGET.name)


if __name__ == "__main__":
    main()
