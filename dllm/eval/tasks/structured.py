"""Tasks that turn sentences into a JSON object, JSON records, a table or a Python function.

Grading compares what is meant: values and their types, cells, the syntax tree; never the layout.
"""

from __future__ import annotations

import ast
import json
import re
import warnings
from dataclasses import dataclass
from typing import Any, ClassVar

from dllm.eval.tasks.base import Sample
from dllm.eval.tasks.datasets import DATASETS, GeneratedDataset
from dllm.eval.tasks.generated import GeneratedTask, last

OPENING = re.compile(r"[\[{]")
FUNCTION = re.compile(r"^def .*(?:\n(?:[ \t].*|$))*", re.MULTILINE)  # up to a line at its margin


@dataclass(frozen=True)
class Json(GeneratedTask):
    """A sentence to a JSON object."""

    name: ClassVar[str] = "json"
    dataset: ClassVar[GeneratedDataset] = DATASETS["json"]

    def reason(self, sample: Sample, answer: str) -> str:
        try:
            return records_reason([json.loads(sample.answer)], [read_json(answer)])
        except ValueError:
            return "parse"

    def read(self, reply: str) -> str | None:
        return last_json(reply, dict)


@dataclass(frozen=True)
class Records(GeneratedTask):
    """Sentences to a JSON list of objects."""

    name: ClassVar[str] = "records"
    dataset: ClassVar[GeneratedDataset] = DATASETS["records"]

    def reason(self, sample: Sample, answer: str) -> str:
        try:
            found = read_json(answer)
        except ValueError:
            return "parse"
        if not isinstance(found, list):
            return "parse"
        return records_reason(json.loads(sample.answer), found)

    def read(self, reply: str) -> str | None:
        return last_json(reply, list)


def read_json(reply: str) -> Any:
    """The value of a JSON text; ValueError if it is none or an object holds a key twice."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) < len(pairs):
            raise ValueError("a key comes twice")
        return dict(pairs)

    try:
        return json.loads(reply, object_pairs_hook=unique)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def records_reason(gold: list[Any], found: list[Any]) -> str:
    """The reason code of records that should be `gold`."""
    if not all(isinstance(record, dict) for record in found):
        return "parse"
    if len(found) != len(gold):
        return "rows"
    if any(want.keys() != record.keys() for want, record in zip(gold, found)):
        return "keys"
    same = all(
        type(record[key]) is type(value) and record[key] == value  # to ==, 1 is 1.0 and true
        for want, record in zip(gold, found)
        for key, value in want.items()
    )
    return "ok" if same else "values"


def last_json(reply: str, kind: type) -> str | None:
    """The text of the last JSON value of a `kind` in `reply` that is no part of another one."""
    found, at = None, 0
    while opening := OPENING.search(reply, at):
        at = opening.start()
        try:
            value, end = json.JSONDecoder().raw_decode(reply, at)
        except ValueError:
            at += 1
            continue
        except RecursionError:  # to try every bracket of a very deep nest would take minutes
            break
        found = reply[at:end] if isinstance(value, kind) else found
        at = end
    return found


@dataclass(frozen=True)
class TableTask(GeneratedTask):
    """Sentences to a markdown table."""

    name: ClassVar[str] = "table"
    dataset: ClassVar[GeneratedDataset] = DATASETS["table"]

    def reason(self, sample: Sample, answer: str) -> str:
        gold, found = cells(sample.answer), cells(answer)
        if gold is None or found is None:
            return "parse"
        if found[0] != gold[0]:
            return "header"
        if len(found) != len(gold):
            return "rows"
        return "ok" if found == gold else "cells"

    def read(self, reply: str) -> str | None:
        lines = reply.split("\n")
        marked = [at for at, line in enumerate(lines) if line.lstrip().startswith("|")]
        return "\n".join(lines[marked[0] : marked[-1] + 1]) if marked else None


def cells(table: str) -> list[list[str]] | None:
    """Header and rows of a markdown table without its rule; None if the text is no table."""
    lines = [line.strip() for line in table.strip().split("\n")]
    if not all(len(line) > 1 and line[0] == line[-1] == "|" for line in lines):
        return None
    header, *rows = ([cell.strip() for cell in line[1:-1].split("|")] for line in lines)
    if not rows or not all(re.fullmatch(r":?-+:?", cell) for cell in rows[0]):
        return None
    return [header, *rows[1:]] if len(header) == len(rows[0]) else None


@dataclass(frozen=True)
class Function(GeneratedTask):
    """A description to a Python function, compared by its syntax tree and never run."""

    name: ClassVar[str] = "function"
    dataset: ClassVar[GeneratedDataset] = DATASETS["function"]

    def reason(self, sample: Sample, answer: str) -> str:
        try:
            found = tree(answer.strip())
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return "parse"
        return "ok" if found == tree(sample.answer) else "tree"

    def read(self, reply: str) -> str | None:
        return last(FUNCTION.findall(reply))


def tree(code: str) -> str:
    """The syntax tree as text, free of layout and comments; the code never runs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the parser remarks on text such as `9if x`
        return ast.dump(ast.parse(code))
