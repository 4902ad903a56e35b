"""Table of what is known of the distribution of each task's answers."""

from __future__ import annotations

from collections.abc import Sequence

from dllm.eval.ceiling import chance
from dllm.eval.closed_forms import correlation_bits, positions
from dllm.eval.curves import label
from dllm.eval.tables import NONE, TextTable, number, percent
from dllm.eval.tasks import Task, closed_form, task_of

NOTES = (
    "bits: total correlation of the answer's items given the question, which one forward for all "
    "of them ignores",
    "at once: how often a perfect model is right, %, that draws all items in one forward",
)


def distributions(specs: Sequence[str]) -> TextTable:
    """A row for every task: its bits and the perfect model's chance, size by size."""
    rows = [(label(spec, specs), *_row(task_of(spec))) for spec in specs]
    return TextTable("Tasks", ("task", "n", "bits", "at once, %"), tuple(rows), NOTES)


def _row(task: Task) -> tuple[str, str, str]:
    known = [form for n in task.n if (form := closed_form(task, n)) is not None]
    bits = [number(correlation_bits(*form)) for form in known]
    once = [chance(*form, [range(positions(*form))]) for form in known]
    return (
        "+".join(map(str, task.n)),
        ", ".join(dict.fromkeys(bits)) or NONE,
        ", ".join(dict.fromkeys(map(percent, once))) or NONE,
    )
