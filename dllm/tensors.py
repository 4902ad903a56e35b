"""Safetensors files: checked before they are opened, read whole if asked, written."""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

from safetensors import SafetensorError, safe_open

from dllm.errors import DllmError
from dllm.files import FileError, PathLike, replacing

LIMIT = 2**32  # bytes of a file that is read whole
HEADER_LIMIT = 2**24  # bytes: that of a shard of 10,000 tensors has one or two million
POINTER = b"version https://git-lfs"
NUMBERS = ("F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL")
SHOWN = 4  # names in an error


def check_file(
    path: PathLike,
    expected: str = "a regular file",
    *,
    called: str | None = None,
    error: type[DllmError] = FileError,
) -> None:
    """Raise `error` unless `path` is a regular file with content of its own."""
    name = called or os.fspath(path)
    try:
        mode = os.stat(path).st_mode
        if not stat.S_ISREG(mode):  # before it is opened: a pipe would block, a device never end
            found = "found a directory, a pipe or a device"
            raise error(f"{name}: expected {expected}, {found}")
        with open(path, "rb") as file:
            pointer = file.read(len(POINTER)) == POINTER
    except OSError as problem:
        raise error(f"{name}: expected {expected}: {problem.strerror or problem}") from problem
    if pointer:
        raise error(
            f"{name}: is a Git-LFS pointer, not the file itself; run `git lfs pull` in its folder"
        )


@contextmanager
def opened(
    path: PathLike,
    *,
    framework: Literal["pt", "numpy"] = "pt",
    called: str | None = None,
    error: type[DllmError] = FileError,
) -> Iterator[Any]:
    """An open safetensors file: its metadata and shapes, and its tensors one by one.

    called: what errors call it (None: its path). Raises `error` where `path` is none: a pipe or a
    device, a cut file, a Git LFS pointer.
    """
    name, expected = called or os.fspath(path), "a safetensors file"
    check_file(path, expected, called=called, error=error)
    try:
        with open(path, "rb") as file:
            size = int.from_bytes(file.read(8), "little")
        if size > HEADER_LIMIT:  # the library would read it: 100 MB take it 24 seconds and 2 GB
            raise SafetensorError(f"its header would have {size} bytes, more than {HEADER_LIMIT}")
        with safe_open(path, framework=framework) as tensors:
            yield tensors
    except (SafetensorError, OSError) as problem:
        raise error(f"{name}: expected {expected}: truncated or corrupt ({problem})") from problem


def read_tensors(
    path: PathLike,
    names: Collection[str],
    *,
    format: str | None = None,
    framework: Literal["pt", "numpy"] = "pt",
    called: str | None = None,
) -> tuple[dict[str, Any], dict[str, str]]:
    """The tensors `names` of a file that holds no others, and its metadata.

    format: what the metadata must say under "format" (None: anything, and other tensors are left
    alone). called: as in `opened`. FileError where the file is not that.
    """
    where = called or os.fspath(path)
    with opened(path, framework=framework, called=called) as file:
        if os.stat(path).st_size > LIMIT:
            raise FileError(f"{where}: expected at most {LIMIT / 2**30:.0f} GiB")
        metadata, found = file.metadata() or {}, set(file.keys())
        if format is not None and metadata.get("format") != format:
            said = metadata.get("format")
            raise FileError(f"{where}: format is {said!r:.99}, expected {format!r}")
        if (format is not None and found != set(names)) or not found >= set(names):
            holds = ", ".join(map(repr, sorted(found)[:SHOWN])) or "none"
            more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
            raise FileError(f"{where}: holds {holds}{more}, expected {sorted(names)}")
        for name in names:
            if (kind := file.get_slice(name).get_dtype()) not in NUMBERS:
                raise FileError(
                    f"{where}: {name!r} holds {kind}, expected one of {', '.join(NUMBERS)}"
                )
        try:
            return {name: file.get_tensor(name) for name in names}, metadata
        except (TypeError, ValueError, AttributeError, KeyError, RuntimeError) as error:
            # numpy has no BF16
            raise FileError(f"{where}: a tensor cannot be read: {error}") from error


def write_tensors(path: PathLike, tensors: Mapping[str, Any], metadata: dict[str, str]) -> None:
    """Write torch's `tensors` as one file, whole or not at all; FileError where that fails."""
    from safetensors.torch import save_file

    with replacing(path) as temp:
        save_file(dict(tensors), temp, metadata)
