"""Ctrl-C on a chosen line: KeyboardInterrupt before the n-th line of this package that runs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, NamedTuple, Self

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = tuple(f"{ROOT / folder}/" for folder in ("dllm", "samplers", "cache", "verify"))


class Line(NamedTuple):
    """A line that was about to run."""

    file: str  # below the repository
    function: str
    number: int


class Lines:
    """While it is entered, counts the lines of the package that run, and remembers them.

    at: the line (from 0) that raises KeyboardInterrupt instead; `hit` says that it was reached, and
    nothing is counted from there on.
    """

    def __init__(self, at: int | None = None) -> None:
        self.at = at
        self.hit = False
        self._ran: list[tuple[CodeType, int]] = []

    def ran(self) -> list[Line]:
        """The lines so far."""
        return [Line(_below(c.co_filename), c.co_qualname, n) for c, n in self._ran]

    def __len__(self) -> int:
        return len(self._ran)

    def __enter__(self) -> Self:
        self._before = sys.gettrace()
        sys.settrace(self._called)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._before)

    def _called(self, frame: FrameType, event: str, arg: Any) -> Any:
        return None if self.hit or not _below(frame.f_code.co_filename) else self._line

    def _line(self, frame: FrameType, event: str, arg: Any) -> Any:
        if event == "line" and not self.hit:
            self._ran.append((frame.f_code, frame.f_lineno))
            if self.at is not None and len(self._ran) > self.at:
                self.hit = True
                raise KeyboardInterrupt
        return self._line


@cache
def _below(file: str) -> str:
    """`file` as it is called below the repository; "" where it is not the package's."""
    path = str(Path(file).resolve())
    return str(Path(path).relative_to(ROOT)) if path.startswith(PACKAGE) else ""


def every_line(ran: Sequence[Line], begin: str, end: str, files: Sequence[str] = ()) -> list[int]:
    """Indices into `ran`: the first and the last run of every line of `files` (none: of all) that
    runs between the first one of the function `begin` and the last one of the function `end`.
    """
    functions = [line.function for line in ran]
    first, last = functions.index(begin), len(ran) - functions[::-1].index(end)
    span = [i for i in range(first, last) if not files or ran[i].file in files]
    once = {ran[i]: i for i in reversed(span)}, {ran[i]: i for i in span}
    return sorted({i for where in once for i in where.values()})
