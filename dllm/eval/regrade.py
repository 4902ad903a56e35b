"""Grading the answers of a run again from its files alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from dllm.errors import DllmError
from dllm.eval.records import Row
from dllm.eval.store import Store, write_summary
from dllm.eval.suite import task_of
from dllm.eval.summary import summarize


def regrade(path: Path) -> tuple[int, int]:
    """Rewrite the grades and the summary of the run in `path`; answers whose grade changed, and
    all. DllmError where the run is not finished or of another version of the suite's files.
    """
    store = Store(path)
    plan = store.plan()
    samples = dict(store.samples())
    tasks = [task_of(spec) for spec in plan.tasks]
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
    write_summary(path, summarize(plan, rows))
    return changed, len(rows)
