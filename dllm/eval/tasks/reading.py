"""Spans of a list's items in a reply that may be wrapped in chatter, quotes or bullets."""

from __future__ import annotations

import re
from string import whitespace

from dllm.eval.tasks.base import Span

BEFORE = whitespace + "'\"`"  # may stand before an item
BEHIND = BEFORE + ".]"
LINE = re.compile(r"[^\n]+")
BULLET = re.compile(r"\s*(?:\d+[.)]|[-*•])\s+")


def list_spans(reply: str) -> list[Span]:
    """Spans of the items, without the quotes and spaces around them, in order; [] for no list.

    The list is what follows the last "[". Without one it is the numbered or bulleted lines at the
    end, or else the last line, from its last colon on. Commas part items.
    """
    return [span for start, end in _parts(reply) for span in _split(reply, start, end)]


def _parts(reply: str) -> list[Span]:
    """The parts of `reply` that hold its list."""
    if "[" in reply:
        start = reply.rindex("[") + 1
        end = reply.find("]", start)
        return [(start, end if end >= 0 else len(reply))]
    lines = [line.span() for line in LINE.finditer(reply) if line[0].strip(BEHIND)]
    bulleted: list[Span] = []
    for start, end in reversed(lines):
        bullet = BULLET.match(reply, start, end)
        if bullet is None:
            break
        bulleted.insert(0, (bullet.end(), end))
    if bulleted or not lines:
        return bulleted
    start, end = lines[-1]
    return [(reply.rfind(":", start, end) + 1 or start, end)]


def _split(reply: str, start: int, end: int) -> list[Span]:
    pieces = reply[start:end].split(",")
    if not pieces[-1].strip():
        pieces.pop()  # nothing at all, or a comma behind the last item
    spans = []
    for piece in pieces:
        item = piece.lstrip(BEFORE)
        first = start + len(piece) - len(item)
        spans.append((first, first + len(item.rstrip(BEHIND))))
        start += len(piece) + 1
    return spans
