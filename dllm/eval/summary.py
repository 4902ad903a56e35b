"""Counts of a run's records: cells, the perfect model's chances, and the per-sample oracle."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dllm.eval.ceiling import chance
from dllm.eval.records import Cell, OracleCell, RunPlan, SampleRecord, Summary
from dllm.eval.tasks import Task, closed_form, tasks_of


class Best(NamedTuple):
    """The best answer to one sample: first by score, then by fewest forwards."""

    score: bool
    forwards: int  # negative
    tokens: int


def summarize(
    plan: RunPlan, rows: Iterable[SampleRecord], tasks: Sequence[Task] | None = None
) -> Summary:
    """Count `rows` by setting, task and size. tasks: the plan's, None: as `tasks_of` makes them."""
    tasks = tasks_of(plan.tasks) if tasks is None else tasks
    cells: dict[tuple[int, int, int], Cell] = {}
    best: dict[tuple[str, int, int], dict[tuple[int, int], Best]] = {}
    for row in rows:
        key = row.setting, row.task, row.n
        setting = plan.settings[row.setting]
        add(cells.setdefault(key, Cell(*key)), row)
        form = closed_form(tasks[row.task], row.n)
        if form is not None and row.sets is not None:
            temperature = float(setting.options.get("temperature", 0.0))
            add_ceiling(cells[key], row, form, temperature)
        found = Best(row.score, -row.nfe, row.tokens)
        samples = best.setdefault((setting.method, row.task, row.n), {})
        samples[row.seed, row.i] = max(found, samples.get((row.seed, row.i), found))
    oracles = (
        OracleCell(
            *key,
            count=len(samples),
            right=sum(each.score for each in samples.values()),
            nfe=-sum(each.forwards for each in samples.values()),
            tokens=sum(each.tokens for each in samples.values()),
        )
        for key, samples in sorted(best.items())
    )
    return Summary(plan, tuple(cells[key] for key in sorted(cells)), tuple(oracles))


def add(cell: Cell, row: SampleRecord) -> None:
    cell.count += 1
    cell.right += row.score
    cell.strict += row.strict
    cell.reasons[row.reason] = cell.reasons.get(row.reason, 0) + 1
    cell.nfe += row.nfe
    cell.canvases += row.canvases
    cell.tokens += row.tokens
    cell.filled += row.filled
    cell.seconds = [a + b for a, b in zip(cell.seconds, row.seconds, strict=True)]
    tau = kendall(row.steps)
    if tau is not None:
        cell.tau += tau
        cell.ordered += 1


def add_ceiling(cell: Cell, row: SampleRecord, form: tuple[str, int], temperature: float) -> None:
    """Only answers with all items count: the chance is about which of them went together."""
    try:
        ceiling = chance(*form, row.sets or (), temperature)
    except ValueError:  # too few or too many items: nothing that the perfect model would write
        return
    if ceiling is not None:
        cell.ceiling += ceiling
        cell.ceiled += 1
        cell.ceiled_right += row.score


def kendall(steps: list[int]) -> float | None:
    """Kendall's tau-a between the tokens' order in the text and in time; None for fewer than two
    tokens (prefilled ones do not count). 1: left to right one by one; 0: all at once.
    """
    order = np.array([step for step in steps if step])
    pairs = len(order) * (len(order) - 1) // 2
    return rising(order) / pairs if pairs else None


def rising(order: NDArray[np.int64]) -> int:
    """Pairs that rise minus pairs that fall; by halves, since answers may be long."""
    if len(order) <= 64:
        return int(np.triu(np.sign(order[None, :] - order[:, None]), 1).sum())
    first, second = np.split(order, [len(order) // 2])
    below = np.sort(first)
    rise = np.searchsorted(below, second, "left").sum()
    fall = (len(below) - np.searchsorted(below, second, "right")).sum()
    return int(rise - fall) + rising(first) + rising(second)
