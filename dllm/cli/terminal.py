"""The terminal: what is printed on it, and what is typed meanwhile."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

try:
    import termios
except ImportError:  # Windows
    termios = None  # type: ignore[assignment]

# What a model or a file says must not steer the terminal.
CONTROLS = {c: "\ufffd" for c in (*range(32), *range(127, 160)) if chr(c) not in "\t\n"}


def printable(text: str) -> str:
    """`text` with U+FFFD in place of all control characters but tabs and ends of lines."""
    return text.translate(CONTROLS)


@contextmanager
def unechoed() -> Iterator[None]:
    """Do not show what is typed meanwhile: it would smear what is drawn.

    The next line that is read begins with it, and Ctrl-C works as ever.
    """
    if termios is None or not sys.stdin.isatty():
        yield
        return
    before = termios.tcgetattr(sys.stdin)
    quiet = [*before]
    quiet[3] &= ~termios.ECHO
    termios.tcsetattr(sys.stdin, termios.TCSANOW, quiet)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSANOW, before)
