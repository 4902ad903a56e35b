"""Safetensors files that were made for one purpose: filters, tables, heads. Checked, then read."""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any, Literal

from safetensors import SafetensorError, safe_open

from dllm.files import FileError, PathLike

LIMIT = 2**32  # bytes of a file that is read whole
POINTER = b"version https://git-lfs"
NUMBERS = ("F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL")
SHOWN = 4  # names in an error


@contextmanager
def opened(
    path: PathLike, *, framework: Literal["pt", "numpy"] = "pt", called: str | None = None
) -> Iterator[Any]:
    """An open safetensors file: its metadata and shapes, and its tensors one by one.

    called: what errors call it (None: its path). FileError where `path` is none: a pipe or a
    device, a cut file, a Git LFS pointer.
    """
    name = called or os.fspath(path)
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise FileError(f"{name}: expected a safetensors file, found no regular file")
        with open(path, "rb") as file:
            if file.read(len(POINTER)) == POINTER:
                raise FileError(f"{name}: a Git LFS pointer, not the file: run `git lfs pull`")
        with safe_open(path, framework=framework) as tensors:
            yield tensors
    except (SafetensorError, OSError) as error:
        raise FileError(f"{name}: expected a safetensors file: {error}") from error


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
