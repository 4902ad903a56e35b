"""Logs of JSON lines that survive a kill, a full disk and a second process.

A line is in the file when `append` returns. A line that a kill cut off is repaired on opening; one
that a full disk cut off is taken back at once. While a log is open no other process can open it.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

from dllm.files import (
    FileError,
    PathLike,
    decode_text,
    destination,
    is_stream,
    parse_json,
    to_json,
)

if sys.platform != "win32":
    import fcntl

LINE_LIMIT = 2**28  # bytes
REMEDY = "choose another file, or delete it"


class JsonLog:
    """A file of JSON objects, one a line, opened to be continued.

    header: the first line, which says what the others belong to; a log with another header is
    refused. None: a log without one. fresh: whether what stands there is thrown away. remedy: what
    the user may do about a log of something else.
    """

    def __init__(
        self,
        path: PathLike,
        header: Mapping[str, Any] | None = None,
        *,
        fresh: bool = False,
        remedy: str = REMEDY,
    ) -> None:
        """Raises FileError where the log belongs to something else, is in use or is broken."""
        self.name, self.header, self.remedy = os.fspath(path), header, remedy
        self.path = destination(path)
        if is_stream(self.path):
            raise FileError(f"{self.name}: expected a regular file, found a pipe or a device")
        self._file = _opened(self.path, self.name)
        try:
            if fresh:
                self._file.truncate(0)
            if header is not None:
                self._check(header)
            self._cut_torn_line()
            if header is not None and not self._size():
                self.append(header)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """The records so far, without the header."""
        numbered = read_records(self.path, self.name)
        if self.header is not None:
            next(numbered)
        return (record for _, record in numbered)

    def append(self, *records: Mapping[str, Any]) -> None:
        """Write `records`; all are in the file on return, or none and a FileError."""
        lines = "".join(to_json(record) + "\n" for record in records)
        before = self._size()
        try:
            _write(self._file.fileno(), lines.encode())
        except BaseException as error:
            self._file.truncate(before)
            if isinstance(error, OSError):
                raise FileError(f"{self.name}: {error.strerror}; what is in it is kept") from error
            raise

    def keep(self, wanted: Callable[[dict[str, Any]], bool]) -> None:
        """Cut the log before the first record that is not `wanted`."""
        end = 0
        with open(self.path, "rb") as file:
            for number, record in read_records(self.path, self.name):
                is_header = number == 1 and self.header is not None
                if not is_header and not wanted(record):
                    self._file.truncate(end)
                    return
                end += len(file.readline())

    def close(self) -> None:
        """Let other processes open the log."""
        self._file.close()

    def _size(self) -> int:
        return os.fstat(self._file.fileno()).st_size

    def _cut_torn_line(self) -> None:
        end = size = self._size()
        while end:  # from behind, a piece at a time: the file may be long
            start = max(0, end - 2**16)
            self._file.seek(start)
            found = self._file.read(end - start).rfind(b"\n")
            if found >= 0:
                end = start + found + 1
                break
            end = start
        if end < size:
            self._file.truncate(end)

    def _check(self, header: Mapping[str, Any]) -> None:
        """FileError unless the file begins with `header`, or with what a kill left of it."""
        try:
            first = next(read_records(self.path, self.name), None)
        except FileError:  # no line of JSON
            first = 1, {}
        if first is not None:
            check_header(first[1], header, self.name, self.remedy)
        else:
            line = to_json(header).encode()
            self._file.seek(0)
            if not line.startswith(self._file.read(len(line) + 1)):
                check_header({}, header, self.name, self.remedy)


class LineStream:
    """A pipe or a device to which JSON lines are written as they come."""

    def __init__(self, path: PathLike) -> None:
        self.name = os.fspath(path)
        try:
            self._file = open(path, "wb", buffering=0)  # noqa: SIM115 (__exit__ closes it)
        except OSError as error:
            raise FileError(f"{self.name}: {error.strerror}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Tell who reads it that there is no more."""
        self._file.close()

    def append(self, *records: Mapping[str, Any]) -> None:
        """Write `records`; FileError where nobody reads them."""
        try:
            for record in records:
                _write(self._file.fileno(), (to_json(record) + "\n").encode())
        except OSError as error:
            raise FileError(f"{self.name}: {error.strerror}") from error


def new_log(path: PathLike) -> JsonLog | LineStream:
    """A log that begins anew, or the pipe or device that stands there."""
    return LineStream(path) if is_stream(path) else JsonLog(path, fresh=True)


def check_header(
    found: Mapping[str, Any], expected: Mapping[str, Any], name: str, remedy: str = REMEDY
) -> None:
    """FileError, naming what differs, unless a log's header is the `expected` one."""
    expected = json.loads(json.dumps(expected))  # tuples come back from a file as lists
    if found.get("format") != expected.get("format"):
        raise FileError(f"{name}: expected a file of {expected.get('format')}, or none: {remedy}")
    for key in sorted({*found, *expected}):
        if found.get(key) != expected.get(key):
            raise FileError(
                f"{name}: made with another {key} ({found.get(key)!r} there, "
                f"{expected.get(key)!r} here): {remedy}"
            )


def read_records(path: PathLike, name: str | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a log with the numbers of their lines; a torn last line is left out.

    name: what errors call the file. Raises FileError for a line that is no JSON object.
    """
    name = name or os.fspath(path)
    if is_stream(path):
        raise FileError(f"{name}: expected a regular file, found a pipe or a device")
    try:
        with open(path, "rb") as file:
            number = 0
            while line := file.readline(LINE_LIMIT):
                number += 1
                if not line.endswith(b"\n"):
                    if len(line) == LINE_LIMIT:
                        raise FileError(f"{name}, line {number}: longer than {LINE_LIMIT} bytes")
                    return
                where = f"{name}, line {number}"
                record = parse_json(decode_text(line, name, number), where)
                if not isinstance(record, dict):
                    raise FileError(f"{where}: expected a JSON object")
                yield number, record
    except OSError as error:
        raise FileError(f"{name}: {error.strerror}") from error


def ends_whole(path: PathLike) -> bool:
    """Whether the last line of a log is whole."""
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 1))
        return file.read() in (b"", b"\n")


def _opened(path: Path, name: str) -> Any:
    """The file, locked: this process alone writes it."""
    while True:
        try:
            file = open(path, "a+b", buffering=0)  # noqa: SIM115 (close() closes it)
        except OSError as error:
            raise FileError(f"{name}: {error.strerror}") from error
        if sys.platform == "win32":
            return file
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.close()
            raise FileError(f"{name}: another process is writing it") from error
        # Whoever held the lock before may have moved or deleted the file meanwhile.
        if path.exists() and os.path.samestat(os.stat(path), os.fstat(file.fileno())):
            return file
        file.close()


def _write(descriptor: int, data: bytes) -> None:
    """Write all of `data`: a system call may take a part."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
