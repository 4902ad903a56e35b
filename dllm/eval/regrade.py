"""Grading the answers of a run again from its files alone."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from dllm.errors import DllmError
from dllm.eval.records import Row
from dllm.eval.store import Store, write_summary
from dllm.eval.suite import tasks_of
from dllm.eval.summary import summarize


def regrade(path: Path, said: Collection[str] = ()) -> tuple[int, int]:
    """Rewrite the grades and the summary of the run in `path`; answers whose grade changed, and
    all. said: its tasks that may be imported, see `tasks_of`. DllmError where the run is not
    finished or of another version of the suite's files.
    """
    store = Store(path)
    plan = store.plan()
    samples = dict(store.samples())
    tasks = tasks_of(plan.tasks, said)
    rows: list[Row] = []
    changed = 0
    for row in store.rows():
        task, *_ = which = row.key[:4]
        if which not in samples:
            raise DllmError(f"{path}: not finished; run the same `dllm eval run` to its end first")
        grade = tasks[task].grade(samples[which], row.text)
        new = replace(row, score=grade.score, strict=grade.strict, reason=grade.reason)
        changed += new != row
        rows.append(new)
    store.rewrite(rows)
    write_summary(path, summarize(plan, rows, tasks))
    return changed, len(rows)
