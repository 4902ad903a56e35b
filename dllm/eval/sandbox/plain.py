"""Plain values on their way between two processes that do not trust each other.

Numbers, texts, None and the builtin containers of them, as a tag, a length and the content each:
nothing that is read runs anything. Loaded by `execution` into a fresh interpreter, without the
package.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False  # importing typing takes longer than most programs
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


class Thing:
    """Stands for a value that is no plain one: equal to nothing but itself."""


def pack(value: Any) -> bytes:
    """`value` as a tag, its length and its content. Numbers, texts, None and the builtin containers
    keep their type, subclasses become what they derive from; what else can be iterated arrives as
    an iterator, all the rest as a `Thing`.
    """
    if value is None or value is True or value is False:
        tag, content = b"c", repr(value).encode()
    elif isinstance(value, int):
        tag, content = b"i", hex(value).encode()
    elif isinstance(value, float):
        tag, content = b"f", float.hex(value).encode()
    elif isinstance(value, complex):
        tag, content = b"z", pack(value.real) + pack(value.imag)
    elif isinstance(value, str):
        tag, content = b"s", value.encode("utf-8", "surrogatepass")
    elif isinstance(value, (bytes, bytearray)):
        tag, content = b"b", bytes(value)
    elif isinstance(value, range):
        tag, content = b"r", pack(value.start) + pack(value.stop) + pack(value.step)
    elif isinstance(value, dict):
        tag, content = b"d", b"".join(pack(key) + pack(each) for key, each in value.items())
    elif hasattr(value, "as_integer_ratio"):  # Decimal, Fraction
        try:
            tag, content = b"q", b"".join(map(pack, value.as_integer_ratio()))
        except (ValueError, OverflowError):  # not a number, or without an end
            tag, content = b"o", b""
    else:
        kinds = ((list, b"l"), (tuple, b"t"), (set, b"S"), (frozenset, b"F"), (object, b"I"))
        tag = next(tag for kind, tag in kinds if isinstance(value, kind))
        try:
            content = b"".join(map(pack, value))
        except TypeError:
            tag, content = b"o", b""
    return tag + len(content).to_bytes(8, "big") + content


def unpack(packed: memoryview) -> list[Any]:
    """The values that stand one after another in `packed`, whoever wrote them; some exception where
    it is nothing of the kind.
    """
    values = []
    while packed:
        tag, end = chr(packed[0]), 9 + int.from_bytes(packed[1:9], "big")
        if end > len(packed):
            raise ValueError("a value is cut short")
        values.append(unpacked(tag, packed[9:end]))
        packed = packed[end:]
    return values


def unpacked(tag: str, content: memoryview) -> Any:
    if tag in "cifs":
        word = str(content, "utf-8", "surrogatepass")
        if tag == "c":
            return {"None": None, "True": True, "False": False}[word]
        return word if tag == "s" else int(word, 16) if tag == "i" else float.fromhex(word)
    if tag == "b":
        return bytes(content)
    items = unpack(content)
    if tag == "q":
        from fractions import Fraction

        return Fraction(*items)
    make: dict[str, Callable[[], Any]] = {
        "z": lambda: complex(*items),
        "r": lambda: range(*items),
        "d": lambda: dict(zip(items[::2], items[1::2], strict=True)),
        "l": lambda: items,
        "t": lambda: tuple(items),
        "S": lambda: set(items),
        "F": lambda: frozenset(items),
        "I": lambda: iter(items),
        "o": Thing,
    }
    return make[tag]()


def send(fd: int, *values: Any) -> None:
    content = memoryview(pack(values))
    while content:
        content = content[os.write(fd, content) :]


def receive(fd: int) -> list[Any]:
    """The values that the other end gave to `send`; EOFError where it is gone."""
    length = int.from_bytes(read(fd, 9)[1:], "big")
    return unpack(memoryview(read(fd, length)))


def read(fd: int, count: int) -> bytes:
    parts = []
    while count:
        part = os.read(fd, min(count, 2**20))
        if not part:
            raise EOFError
        parts.append(part)
        count -= len(part)
    return b"".join(parts)
