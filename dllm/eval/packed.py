"""Text files that may be gzipped."""

from __future__ import annotations

import gzip
import io
import os
import zlib

from dllm.files import FileError, PathLike, decode_text, read_bytes

LIMIT = 2**28  # bytes, packed or not


def read_packed(path: PathLike) -> str:
    """The text of a UTF-8 file, or of what is packed in one whose name ends in .gz. FileError."""
    name = os.fspath(path)
    data = read_bytes(path, limit=LIMIT)
    if name.endswith(".gz"):
        try:
            with gzip.open(io.BytesIO(data)) as file:
                data = file.read(LIMIT + 1)
        except (OSError, EOFError, zlib.error) as error:
            raise FileError(f"{name}: expected a whole gzip file ({error})") from error
        if len(data) > LIMIT:
            raise FileError(f"{name}: expected at most {LIMIT // 2**20} MiB when unpacked")
    return decode_text(data, name)
