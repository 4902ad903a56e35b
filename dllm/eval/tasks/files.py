"""Tasks whose questions stand in a local JSON-lines file. Nothing is downloaded."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal

from dllm.errors import DllmError
from dllm.eval.packed import read_packed
from dllm.eval.tasks.base import Surface, TaskBase
from dllm.files import FileError, parse_json

Row = dict[str, str]
Setup = Literal["llada", "llada-instruct", "dream", "dream-instruct", "fast-dllm", "dparallel"]


@dataclass(frozen=True)
class Convention:
    """A paper's convention for a benchmark. length: tokens of the answer; chat: see `TaskBase`."""

    length: int
    chat: bool


def read_rows(path: str, patterns: Mapping[str, str], source: str) -> list[Row]:
    """The objects of a .jsonl or .jsonl.gz file, each with texts that `patterns` find something in.

    source: where such a file comes from. DllmError names it, or the line that is wrong.
    """
    try:
        text = read_packed(path)
    except FileError as error:
        raise DllmError(f"cannot read {path!r} ({error}): expected {source}") from error
    numbered = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not numbered:
        raise DllmError(f"no questions in {path!r}: expected {source}")
    return [read_row(line, patterns, f"{path}, line {number}") for number, line in numbered]


def read_row(line: str, patterns: Mapping[str, str], where: str) -> Row:
    with suppress(FileError):
        row = parse_json(line, where)
        if isinstance(row, dict) and all(
            isinstance(row.get(key), str) and re.search(pattern, row[key])
            for key, pattern in patterns.items()
        ):
            return row
    expected = ", ".join(f"{key} (/{pattern}/)" for key, pattern in patterns.items())
    raise DllmError(f"{where}: expected a JSON object with the texts {expected}")


@dataclass(frozen=True)
class FileTask(TaskBase):
    """One cell: sample i is row i of `file`, whatever the seed. setup: whose convention it follows;
    length: the answer's tokens, where not those of the setup. Grading does not read the file.
    """

    source: ClassVar[str]
    patterns: ClassVar[Mapping[str, str]]
    setups: ClassVar[Mapping[Setup, Convention]]
    n: tuple[int, ...] = (0,)
    surface: Surface = "free"
    file: str = ""
    setup: Setup = "llada"
    length: int | None = None

    def __post_init__(self) -> None:
        if self.n != (0,):
            raise ValueError(f"n={self.n}: expected 0, the questions of a file have no sizes")
        if self.surface != "free":
            raise ValueError(f"surface={self.surface!r}: expected free")
        if self.setup not in self.setups:
            raise ValueError(f"setup={self.setup!r}: expected one of {', '.join(self.setups)}")
        if self.length is not None and self.length < 1:
            raise ValueError(f"length={self.length}: expected at least 1 token, or none")

    @property
    def budget(self) -> int:
        return self.length or self.setups[self.setup].length

    @property
    def chat(self) -> bool:
        return self.setups[self.setup].chat

    @cached_property
    def rows(self) -> list[Row]:
        return read_rows(self.file, self.patterns, f"file={self.source}")

    def count(self, n: int) -> int:
        return len(self.rows)
