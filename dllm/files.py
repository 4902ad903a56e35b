"""Files: text and JSON read within bounds, and files that are written whole or not at all.

Text is UTF-8, with or without a byte order mark. What goes wrong is a FileError that names the file
and leaves what stood there untouched. Logs that grow line by line are in jsonlog.py.
"""

from __future__ import annotations

import errno
import json
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from safetensors import SafetensorError

from dllm.errors import DllmError

PathLike = str | os.PathLike[str]
LIMIT = 2**30  # bytes; no text that this package reads is longer
SETTINGS_LIMIT = 2**26  # bytes of a configuration, an index, a preset
UTF16 = (b"\xff\xfe", b"\xfe\xff")


class FileError(DllmError):
    """A file that cannot be read or written, or whose content is not what it should be."""


def read_bytes(path: PathLike, *, limit: int = LIMIT, pipes: bool = False) -> bytes:
    """The content of a file of at most `limit` bytes.

    pipes: whether a named pipe or a device is read too, to its end. Elsewhere one is refused before
    it is opened: it would block, or never end.
    """
    name = os.fspath(path)
    with _told(name):
        mode = os.stat(path).st_mode
        if stat.S_ISDIR(mode):
            raise FileError(f"{name}: expected a file, found a directory")
        if not stat.S_ISREG(mode) and not pipes:
            raise FileError(f"{name}: expected a regular file, found a pipe or a device")
        with open(path, "rb") as file:
            return _bounded(file, name, limit)


def read_text(path: PathLike, *, limit: int = LIMIT, pipes: bool = False) -> str:
    """The text of a UTF-8 file, without a byte order mark; see `read_bytes`."""
    return decode_text(read_bytes(path, limit=limit, pipes=pipes), os.fspath(path))


def read_stdin(*, limit: int = LIMIT) -> str:
    """All text on stdin, which is UTF-8 whatever the locale says."""
    if sys.stdin is None:
        raise FileError("stdin: is closed")
    return decode_text(_bounded(sys.stdin.buffer, "stdin", limit), "stdin")


def decode_text(data: bytes, name: str, first_line: int = 1) -> str:
    """The text of UTF-8 `data`, without a byte order mark, its lines ended by "\\n" alone.

    FileError says what is not UTF-8. first_line: the number, in the file called `name`, of the
    first line of `data`.
    """
    if data.startswith(UTF16):
        raise FileError(f"{name}: expected UTF-8 text, found UTF-16; convert it first")
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        line = first_line + data.count(b"\n", 0, error.start)
        raise FileError(
            f"{name}, line {line}: expected UTF-8 text, found the byte {data[error.start]:#04x} "
            "(Latin-1 or Windows text? convert it first)"
        ) from error


def read_json(path: PathLike, *, limit: int = SETTINGS_LIMIT) -> Any:
    """The JSON value in a file; see `read_text` and `parse_json`."""
    return parse_json(read_text(path, limit=limit), os.fspath(path))


def parse_json(text: str, name: str) -> Any:
    """The JSON value that `text` is. FileError names where it stands, and what is wrong."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise FileError(f"{name}: this JSON is nested too deep") from error
    except ValueError as error:  # a JSONDecodeError, or an integer of thousands of digits
        raise FileError(f"{name}: expected JSON ({error})") from error


def to_json(content: Any, indent: int | None = None, *, ascii_only: bool = False) -> str:
    """`content` as JSON that can be written as UTF-8: half a surrogate pair is escaped."""
    text = json.dumps(content, indent=indent, ensure_ascii=ascii_only)
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(content, indent=indent)
    return text


def destination(path: PathLike) -> Path:
    """Where a write to `path` lands: links are followed. FileError where none can succeed, so that
    nothing is computed in vain. Nothing is created or changed.
    """
    name = os.fspath(path)
    if is_stream(path):  # /dev/fd/63 resolves to what is no path at all
        return Path(path)
    with _told(name):
        target = Path(path).resolve()
        if target.is_dir():
            raise FileError(f"{name}: expected a file to write, found a directory")
        if not target.parent.is_dir():
            raise FileError(f"{name}: no directory {str(target.parent)!r} to write it in")
        needed = [target, target.parent] if target.exists() else [target.parent]
        if not all(os.access(each, os.W_OK) for each in needed):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    return target


def is_stream(path: PathLike) -> bool:
    """Whether `path` is a pipe or a device: written straight to, never replaced."""
    path = Path(path)
    return path.exists() and not path.is_file() and not path.is_dir()


@contextmanager
def replacing(path: PathLike) -> Iterator[Path]:
    """A path to fill, which then takes the place of `path` in one step, or not at all.

    A link stays: what it points to is replaced. A pipe or a device is given as it is.
    """
    target = destination(path)
    if is_stream(target):
        with _told(os.fspath(path)):
            yield target
        return
    temp = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with _told(os.fspath(path)):
            temp.touch()
            permissions = stat.S_IMODE(os.stat(target if target.exists() else temp).st_mode)
            yield temp
            temp.chmod(permissions)  # safetensors writes for the owner only
            with temp.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(temp, target)
    finally:
        with suppress(OSError):
            temp.unlink(missing_ok=True)


def write_text(path: PathLike, text: str) -> None:
    """Write `text`; see `replacing`."""
    with replacing(path) as temp:
        temp.write_text(text, encoding="utf-8")


def write_json(path: PathLike, content: Any, indent: int | None = 1) -> None:
    """Write `content` as JSON; see `replacing`."""
    write_text(path, to_json(content, indent) + "\n")


def _bounded(file: BinaryIO, name: str, limit: int) -> bytes:
    try:
        data = file.read(limit + 1)
    except OSError as error:
        raise FileError(f"{name}: {error.strerror or error}") from error
    if len(data) > limit:
        raise FileError(f"{name}: expected at most {limit / 2**20:.0f} MiB")
    return data


@contextmanager
def _told(name: str) -> Iterator[None]:
    """Turn an error about any file, safetensors' own too, into one about what the user named."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise FileError(f"{name}: {getattr(error, 'strerror', None) or error}") from error
