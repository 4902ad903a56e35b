"""Grading the answers of a run again from its files alone."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from dllm.errors import DllmError
from dllm.eval.records import SampleRecord
from dllm.eval.store import Store, write_summary
from dllm.eval.summary import summarize
from dllm.eval.tasks import Grade, Sample, Task, tasks_of


def regrade(path: Path, said: Collection[str] = ()) -> tuple[int, int]:
    """Rewrite the grades and the summary of the run in `path`; answers whose grade changed, and
    all. said: its tasks that may be imported, see `tasks_of`. DllmError where the run is not
    finished or of another version of the suite's files.
    """
    plan = Store(path).plan()  # before anything is written
    with Store(path) as store:
        samples = dict(store.samples())
        tasks = tasks_of(plan.tasks, said)
        rows: list[SampleRecord] = []
        changed = 0
        for row in store.rows():
            task, *_ = which = row.key[:4]
            if which not in samples:
                raise DllmError(
                    f"{path}: not finished; run the same `dllm eval run` to its end first"
                )
            grade = graded(tasks[task], samples[which], row.text, f"{path}: sample {which}")
            new = replace(row, score=grade.score, strict=grade.strict, reason=grade.reason)
            changed += new != row
            rows.append(new)
        summary = summarize(plan, rows, tasks)
        store.rewrite(rows)
        write_summary(path, summary)
    return changed, len(rows)


def graded(task: Task, sample: Sample, reply: str, where: str) -> Grade:
    """The grade of a reply to a sample that may be none of this task's."""
    try:
        return task.grade(sample, reply)
    except DllmError:
        raise
    except Exception as error:  # the facts of a sample can be anything
        raise DllmError(
            f"{where}: expected a question of {task.name} ({type(error).__name__}: {error})"
        ) from error
