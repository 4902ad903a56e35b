"""The files of a run (see records.py): continued after an interruption, merged at the end.

A row is written once its batch is decoded. A torn last line, of a run that was killed, is dropped;
a row that stands in several files counts once.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from dllm.errors import DllmError
from dllm.eval.records import Plan, Row, Summary
from dllm.eval.suite import Sample, SuiteTask, draw
from dllm.files import write_json

RUN, RESULTS, SAMPLES, SUMMARY = "run.json", "results.jsonl", "samples.jsonl", "summary.json"
Which = tuple[int, int, int, int]  # task, n, seed, i
FIELDS = {field.name for field in fields(Row)}


class Store:
    """The directory of one run, as one of its processes sees it."""

    def __init__(self, path: Path, rank: int = 0) -> None:
        self.path = path
        self.mine = path / f"results.{rank}.jsonl"

    def begin(self, plan: Plan) -> None:
        """Create the run or join its plan with `plan`; DllmError where they do not go together."""
        if (self.path / RUN).exists():
            plan = joined(self.plan(), plan, self.path)
        elif self.path.exists() and any(self.path.iterdir()):
            raise DllmError(f"{self.path}: expected a new directory, or one of `dllm eval run`")
        self.path.mkdir(parents=True, exist_ok=True)
        write_json(self.path / RUN, plan.as_dict())

    def plan(self) -> Plan:
        """The plan in the directory; DllmError where there is none."""
        try:
            return Plan.from_dict(json.loads((self.path / RUN).read_text("utf-8")))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DllmError(f"{self.path}: no run of `dllm eval run` in it ({error})") from error

    def append(self, rows: Sequence[Row]) -> None:
        """Keep `rows`; they are in the file on return."""
        cut_torn_line(self.mine)
        with self.mine.open("a", encoding="utf-8") as file:
            file.write("".join(json.dumps(asdict(row)) + "\n" for row in rows))

    def rows(self) -> Iterator[Row]:
        """All rows of all processes, each once."""
        seen = set()
        for path in sorted(self.path.glob("results*.jsonl")):
            for row in read_rows(path):
                if row.key not in seen:
                    seen.add(row.key)
                    yield row

    def merge(self, plan: Plan, tasks: Sequence[SuiteTask]) -> None:
        """The plan, the samples that all rows answer, and one results.jsonl in order. tasks: the
        plan's.
        """
        write_json(self.path / RUN, plan.as_dict())
        rows = sorted(self.rows(), key=lambda row: row.key)
        known = dict(self.samples())
        for which in sorted({row.key[:4] for row in rows}):
            task, n, seed, i = which
            known.setdefault(which, draw(tasks[task], n, seed, i))
        lines = (
            {"task": task, "n": n, "seed": seed, "i": i, **sample.as_dict()}
            for (task, n, seed, i), sample in sorted(known.items(), key=lambda item: item[0])
        )
        write_lines(self.path / SAMPLES, lines)
        self.rewrite(rows)

    def rewrite(self, rows: Sequence[Row]) -> None:
        """Make `rows` all there is."""
        write_lines(self.path / RESULTS, map(asdict, rows))
        for part in self.path.glob("results.*.jsonl"):
            part.unlink()

    def samples(self) -> Iterator[tuple[Which, Sample]]:
        for fields_ in read_lines(self.path / SAMPLES):
            which = fields_["task"], fields_["n"], fields_["seed"], fields_["i"]
            yield which, Sample.from_dict(fields_)


def joined(old: Plan, new: Plan, path: Path) -> Plan:
    """The plan of a run that is continued with another one; indices of the old one stay."""
    for name in ("suite", "model"):
        if getattr(old, name) != getattr(new, name):
            raise DllmError(
                f"{path}: a run with {name}={getattr(old, name)!r}: expected the same, found "
                f"{getattr(new, name)!r}; choose another directory"
            )
    known = {setting.identity for setting in old.settings}
    return replace(
        new,
        tasks=(*old.tasks, *(task for task in new.tasks if task not in old.tasks)),
        settings=(*old.settings, *(s for s in new.settings if s.identity not in known)),
        seeds=tuple(sorted({*old.seeds, *new.seeds})),
        count=max(old.count, new.count),
        memo=old.memo or new.memo,
        skipped=old.skipped,
    )


def write_summary(path: Path, summary: Summary) -> None:
    write_json(path / SUMMARY, summary.as_dict())


def read_rows(path: Path) -> Iterator[Row]:
    for fields_ in read_lines(path):
        if fields_.keys() != FIELDS:
            raise DllmError(f"{path}: a row with {sorted(fields_)}: expected {sorted(FIELDS)}")
        yield Row(**fields_)


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSONL file, none if there is no file; a torn last line is left out."""
    if not path.exists():
        return
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith("\n"):
                return
            try:
                yield json.loads(line)
            except ValueError as error:
                raise DllmError(f"{path}, line {number}: no JSON") from error


def cut_torn_line(path: Path) -> None:
    if path.exists():
        text = path.read_bytes()
        os.truncate(path, text.rfind(b"\n") + 1)


def write_lines(path: Path, lines: Iterable[dict[str, Any]]) -> None:
    """A JSONL file, whole or not at all."""
    temp = path.with_name(path.name + ".tmp")
    with temp.open("w", encoding="utf-8") as file:
        for line in lines:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    os.replace(temp, path)
