"""The files of a run (see records.py): continued after an interruption, merged at the end.

A row is written once its batch is decoded. A torn last line, of a run that was killed, is dropped;
a row that stands in several files counts once. Nobody else has written these files, but anybody may
have: what is not as it should be is a DllmError that names the file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self, TypeVar

from dllm.errors import DllmError
from dllm.eval.records import RunPlan, SampleRecord, Summary
from dllm.eval.shapes import shaped
from dllm.eval.tasks import Sample, Task, draw
from dllm.files import FileError, read_json, replacing, to_json, write_json
from dllm.jsonlog import JsonLog, read_records

T = TypeVar("T")
RUN, RESULTS, SAMPLES, SUMMARY = "run.json", "results.jsonl", "samples.jsonl", "summary.json"
Which = tuple[int, int, int, int]  # task, n, seed, i


class Store:
    """The directory of one run, as one of its processes sees it.

    As a context it is the only one with its rank: another process with the same directory gets a
    DllmError. Processes that share a run have a rank each.
    """

    def __init__(self, path: Path, rank: int = 0) -> None:
        self.path = path
        self.mine = path / f"results.{rank}.jsonl"
        self._log: JsonLog | None = None

    def __enter__(self) -> Self:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FileError(f"{self.path}: {error.strerror}") from error
        for path in (self.path / name for name in (RUN, RESULTS, SAMPLES, SUMMARY)):
            if path.exists() and not path.is_file():  # a pipe would take what is written for ever
                raise FileError(f"{path}: expected a regular file")
        self._log = JsonLog(self.mine)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._log is not None
        with suppress(OSError):  # there is none once all is merged
            if not self.mine.stat().st_size:
                self.mine.unlink()
        self._log.close()

    def fits(self, plan: RunPlan) -> None:
        """DllmError where `plan` cannot be begun or joined here. Nothing is written."""
        if (self.path / RUN).exists():
            joined(self.plan(), plan, self.path)
        elif self.path.exists() and not _is_new(self.path):
            raise DllmError(f"{self.path}: expected a new directory, or one of `dllm eval run`")

    def begin(self, plan: RunPlan) -> None:
        """Create the run or join its plan with `plan`; DllmError where they do not go together."""
        self.fits(plan)
        if (self.path / RUN).exists():
            plan = joined(self.plan(), plan, self.path)
        write_json(self.path / RUN, plan.as_dict())

    def plan(self) -> RunPlan:
        """The plan in the directory; DllmError where there is none."""
        path = self.path / RUN
        if not path.exists():
            raise DllmError(f"{self.path}: no run of `dllm eval run` in it (no {RUN})")
        return checked(path, RunPlan.from_dict, read_json(path))

    def append(self, rows: Sequence[SampleRecord]) -> None:
        """Keep `rows`; they are in the file on return."""
        assert self._log is not None, "only inside the context"
        self._log.append(*map(asdict, rows))

    def rows(self) -> Iterator[SampleRecord]:
        """All rows of all processes, each once."""
        plan, seen = self.plan(), set()
        for path in sorted(self.path.glob("results*.jsonl")):
            for row in read_rows(path, plan):
                if row.key not in seen:
                    seen.add(row.key)
                    yield row

    def merge(self, plan: RunPlan, tasks: Sequence[Task]) -> None:
        """The plan, the samples that all rows answer, and one results.jsonl in order. tasks: the
        plan's.
        """
        write_json(self.path / RUN, plan.as_dict())
        rows = sorted(self.rows(), key=lambda row: row.key)
        known = dict(self.samples())
        for which in sorted({row.key[:4] for row in rows} - known.keys()):
            task, n, seed, i = which
            count = tasks[task].count(n)
            if n not in tasks[task].n or (count is not None and i >= count):
                raise DllmError(f"{self.path}: no sample {i} of size {n} in {plan.tasks[task]!r}")
            known[which] = draw(tasks[task], n, seed, i)
        lines = (
            {"task": task, "n": n, "seed": seed, "i": i, **sample.as_dict()}
            for (task, n, seed, i), sample in sorted(known.items(), key=lambda item: item[0])
        )
        write_lines(self.path / SAMPLES, lines)
        self.rewrite(rows)

    def rewrite(self, rows: Sequence[SampleRecord]) -> None:
        """Make `rows` all there is."""
        write_lines(self.path / RESULTS, map(asdict, rows))
        for part in self.path.glob("results.*.jsonl"):
            with suppress(OSError):  # its rows count once
                part.unlink()

    def samples(self) -> Iterator[tuple[Which, Sample]]:
        plan, path = self.plan(), self.path / SAMPLES
        if not path.exists():
            return
        for number, fields in read_records(path):
            where = f"{path}, line {number}"
            which = checked(where, lambda given: Key.of(given, plan), fields)
            yield which, checked(where, Sample.from_dict, fields)


@dataclass(frozen=True, slots=True)
class Key:
    """The sample that a line of samples.jsonl is."""

    task: int
    n: int
    seed: int
    i: int

    @classmethod
    def of(cls, fields: object, plan: RunPlan) -> Which:
        key = shaped(cls, fields, name="sample")
        plan.check("sample", key.task)
        return key.task, key.n, key.seed, key.i


def _is_new(path: Path) -> bool:
    """Whether a directory holds nothing, or what is left of a run that was killed as it began."""
    try:
        return all(
            each.name.endswith(".tmp")
            or (re.fullmatch(r"results\.\d+\.jsonl", each.name) and not each.stat().st_size)
            for each in path.iterdir()
        )
    except OSError as error:
        raise FileError(f"{path}: {error.strerror}") from error


def joined(old: RunPlan, new: RunPlan, path: Path) -> RunPlan:
    """The plan of a run that is continued with another one; indices of the old one stay."""
    for name in ("suite", "model"):
        if getattr(old, name) != getattr(new, name):
            raise DllmError(
                f"{path}: a run with {name}={getattr(old, name)!r:.300}: expected the same, found "
                f"{getattr(new, name)!r:.300}; choose another directory"
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


def read_rows(path: Path, plan: RunPlan) -> Iterator[SampleRecord]:
    """The rows of one file of a run with this plan."""
    for number, fields in read_records(path):
        yield checked(
            f"{path}, line {number}", lambda given: SampleRecord.from_dict(given, plan), fields
        )


def checked(where: object, read: Callable[[Any], T], given: object) -> T:
    """The result of `read` on `given`, its ValueErrors with the place in front."""
    try:
        return read(given)
    except ValueError as error:
        raise FileError(f"{where}: {error}") from error


def write_lines(path: Path, lines: Iterable[dict[str, Any]]) -> None:
    """A JSONL file, whole or not at all."""
    with replacing(path) as temp, temp.open("w", encoding="utf-8") as file:
        file.writelines(to_json(line) + "\n" for line in lines)
