"""Accuracy against parallelism: the points and curves of a run.

Scores of a selection are means over its tasks, so that every task counts alike however many answers
it has. Rates are sums: all answer tokens over all forwards, those of wrong answers too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

from dllm.errors import DllmError
from dllm.eval.frontier import Pair
from dllm.eval.records import PHASES, Cell, EvalSetting, OracleCell, RunPlan, Summary
from dllm.intervals import weighted

C = TypeVar("C", Cell, OracleCell)


@dataclass(frozen=True, slots=True)
class Split:
    """Losses by cause: shares, over the answers of `tasks` tasks whose ceiling is known.

    ceiling: right answers of a perfect model that commits the same positions together. What is
    measured is ceiling - model_loss + excess; each of the two is summed over the (task, n) where
    the model is below its ceiling, or above it because it prefers some right answers to others.
    """

    tasks: int
    ceiling: float
    model_loss: float
    excess: float

    @property
    def factorisation_loss(self) -> float:
        """Lost by committing dependent tokens together, whatever the model."""
        return 1 - self.ceiling

    @property
    def regret(self) -> float:
        """Ceiling minus measured."""
        return self.model_loss - self.excess


@dataclass(frozen=True)
class Point:
    """One setting on a selection of tasks: its cells, each with answers in it.

    memo: forwards were remembered between settings, so that there are no seconds.
    """

    setting: EvalSetting
    cells: tuple[Cell, ...]
    memo: bool = False

    @cached_property
    def by_task(self) -> dict[int, list[Cell]]:
        return grouped(self.cells)

    @cached_property
    def score(self) -> float:
        return mean_share(self.cells, lambda cell: cell.right)

    @property
    def strict(self) -> float:
        return mean_share(self.cells, lambda cell: cell.strict)

    @cached_property
    def interval(self) -> tuple[float, float]:
        """95% interval of the score; Wilson's for a single task."""
        return weighted(self.tally())

    def tally(self, sign: int = 1) -> list[tuple[float, int, int]]:
        """The score, times `sign`, as parts for `intervals.weighted`."""
        weight = sign / len(self.by_task)
        return [
            (weight, sum(cell.right for cell in cells), _answers(cells))
            for cells in self.by_task.values()
        ]

    @property
    def reasons(self) -> dict[str, float]:
        """Share of each reason, "ok" (the score) among them, as a mean over tasks."""

        def share(code: str) -> float:
            return mean_share(self.cells, lambda cell: cell.reasons.get(code, 0))

        return {
            code: share(code) for code in sorted({c for cell in self.cells for c in cell.reasons})
        }

    @property
    def count(self) -> int:
        return _answers(self.cells)

    @property
    def nfe(self) -> int:
        return sum(cell.nfe for cell in self.cells)

    @property
    def forwards(self) -> float:
        """Forwards per answer."""
        return self.nfe / self.count

    @property
    def tokens(self) -> float:
        """Tokens per answer, up to and including its end."""
        return sum(cell.tokens for cell in self.cells) / self.count

    @property
    def tokens_per_forward(self) -> float:
        return sum(cell.tokens for cell in self.cells) / max(self.nfe, 1)

    @property
    def committed_per_forward(self) -> float:
        """As tokens per forward, with the padding behind the end."""
        return sum(cell.filled for cell in self.cells) / max(self.nfe, 1)

    @property
    def split(self) -> Split | None:
        """None where no ceiling is known."""
        tasks = [[c for c in cells if c.ceiled] for cells in self.by_task.values()]
        tasks = [cells for cells in tasks if cells]
        if not tasks:
            return None
        parts = [0.0, 0.0, 0.0]
        for cells in tasks:
            weight = 1 / len(tasks) / sum(cell.ceiled for cell in cells)
            for cell in cells:
                gap = cell.ceiling - cell.ceiled_right
                for i, lost in enumerate((cell.ceiling, max(gap, 0.0), max(-gap, 0.0))):
                    parts[i] += weight * lost
        return Split(len(tasks), *parts)

    @property
    def order(self) -> float | None:
        """Mean of Kendall's tau between where tokens stand and when they were committed."""
        ordered = sum(cell.ordered for cell in self.cells)
        return sum(cell.tau for cell in self.cells) / ordered if ordered else None

    @property
    def seconds(self) -> dict[str, float] | None:
        """Per answer, by phase; None where they mean nothing."""
        if self.memo:
            return None
        sums = map(sum, zip(*(cell.seconds for cell in self.cells)))
        return dict(zip(PHASES, (total / self.count for total in sums)))


@dataclass(frozen=True, slots=True)
class BestPerSample:
    """One method with the best option for every sample: no single setting reaches further."""

    score: float
    tokens_per_forward: float


@dataclass(frozen=True)
class Curve:
    """The settings of one method, the least parallel first. name: the method, and of which run."""

    name: str
    points: tuple[Point, ...]
    oracle: BestPerSample | None = None

    @property
    def pairs(self) -> list[Pair]:
        """(tokens per forward, score in percent)."""
        return [(point.tokens_per_forward, 100 * point.score) for point in self.points]

    @property
    def rates(self) -> list[Pair]:
        """(answers per forward, score in percent)."""
        return [(point.count / max(point.nfe, 1), 100 * point.score) for point in self.points]


@dataclass(frozen=True)
class CurveSelection:
    """The curves of a run on some of its tasks. left_out: settings that lack a (task, n) that
    others have, so that their mean would not compare, with what they lack and why. dropped: tasks
    that no setting has answers to, and sizes of the others, each with the reason; asked: how many
    tasks there would be with them.
    """

    tasks: tuple[str, ...]
    curves: tuple[Curve, ...]
    left_out: tuple[str, ...]
    dropped: tuple[str, ...]
    asked: int

    @property
    def extent(self) -> str:
        """The number of tasks that a mean is over."""
        few = len(self.tasks) < self.asked
        return f"{len(self.tasks)} of {self.asked} tasks" if few else f"{self.asked} tasks"

    @property
    def points(self) -> list[Point]:
        return [point for curve in self.curves for point in curve.points]

    @property
    def reach(self) -> float:
        """The most tokens per forward that can be reached: the longest mean answer in one."""
        return max(point.tokens for point in self.points)


def select(
    summary: Summary,
    tasks: Sequence[str] | None = None,
    n: Sequence[int] | None = None,
    run: str = "",
) -> CurveSelection:
    """Curves of `tasks` (specs, or names for all specs of one) at the sizes `n`; default: all.

    run: put before the methods' names. DllmError for a task that is not in the run, or where no
    setting has answers to the whole selection.
    """
    chosen = _tasks(summary.plan.tasks, tasks)

    def inside(cell: Cell | OracleCell) -> bool:
        return cell.task in chosen and (n is None or cell.n in n) and cell.count > 0

    cells = list(filter(inside, summary.cells))
    if not cells:
        sizes = sorted({cell.n for cell in summary.cells if cell.task in chosen and cell.count})
        found = f"n of its tasks: {', '.join(map(str, sizes)) or 'none yet'}"
        raise DllmError(f"tasks={_listed(tasks)}, n={_listed(n)}: no answers in the run; {found}")
    whole = {(cell.task, cell.n) for cell in cells}
    points: dict[str, list[Point]] = {}
    left_out = []
    for index, setting in enumerate(summary.plan.settings):
        own = tuple(cell for cell in cells if cell.setting == index)
        missing = whole - {(cell.task, cell.n) for cell in own}
        if missing:
            left_out.append(f"{setting.name} ({_lack(summary.plan, index, min(missing))})")
            continue
        point = Point(setting, own, summary.plan.memo)
        points.setdefault(setting.method, []).append(point)
    if not points:
        raise DllmError(f"no setting has answers to all chosen tasks: {left_out[0]}; choose fewer")
    oracles = list(filter(inside, summary.oracles))
    curves = (
        Curve(
            f"{run}: {method}" if run else method,
            tuple(sorted(found, key=lambda p: (p.tokens_per_forward, -p.score))),
            _oracle([o for o in oracles if o.method == method], whole),
        )
        for method, found in points.items()
    )
    answered = sorted({task for task, _ in whole})
    missing_tasks, missing_sizes = _dropped(summary.plan, chosen, whole, n)
    names = tuple(summary.plan.tasks[task] for task in answered)
    return CurveSelection(
        names,
        tuple(curves),
        tuple(left_out),
        (*missing_tasks, *missing_sizes),
        len(answered) + len(missing_tasks),
    )


def label(spec: str, specs: Sequence[str]) -> str:
    """A task's name, with its options where it does not tell it from others."""
    name = spec.partition(":")[0]
    return spec if sum(other.partition(":")[0] == name for other in specs) > 1 else name


def _tasks(specs: Sequence[str], words: Sequence[str] | None) -> set[int]:
    """Indices of the tasks that `words` name: a spec that is there, else all specs of a name."""
    if words is None:
        return set(range(len(specs)))
    found: set[int] = set()
    for word in words:
        by_spec = {i for i, spec in enumerate(specs) if spec == word}
        by_name = {i for i, spec in enumerate(specs) if spec.partition(":")[0] == word}
        if not by_spec | by_name:
            raise DllmError(f"no task {word!r} in the run: expected one of {', '.join(specs)}")
        found |= by_spec or by_name
    return found


def _lack(plan: RunPlan, setting: int, cell: tuple[int, int]) -> str:
    """The reason why a setting has no answers to the (task, n) `cell`."""
    task, n = cell
    reasons = (s.reason for s in plan.skipped if (s.setting, s.task, s.n) == (setting, task, n))
    return f"{plan.tasks[task]} n={n}: {next(reasons, 'no answers yet')}"


def _dropped(
    plan: RunPlan, chosen: set[int], whole: set[tuple[int, int]], n: Sequence[int] | None
) -> tuple[list[str], list[str]]:
    """Tasks of `chosen`, and sizes of the other ones, that no setting has answers to, and why."""
    answered = {task for task, _ in whole}
    reasons = {
        (skip.task, skip.n): skip.reason
        for skip in plan.skipped
        if skip.task in chosen and (n is None or skip.n in n) and (skip.task, skip.n) not in whole
    }
    first: dict[int, str] = {}
    for (task, _), reason in sorted(reasons.items()):
        first.setdefault(task, reason)
    if n is None:
        first = {task: first.get(task, "no answers yet") for task in sorted(chosen)}
    tasks = [f"{plan.tasks[task]} ({why})" for task, why in first.items() if task not in answered]
    sizes = [
        f"{plan.tasks[task]} n={size} ({reason})"
        for (task, size), reason in sorted(reasons.items())
        if task in answered
    ]
    return tasks, sizes


def _listed(values: Sequence[object] | None) -> str:
    return "all" if values is None else "+".join(map(str, values))


def _answers(cells: Sequence[Cell] | Sequence[OracleCell]) -> int:
    return sum(cell.count for cell in cells)


def grouped(cells: Sequence[C]) -> dict[int, list[C]]:
    """The cells by task."""
    found: dict[int, list[C]] = {}
    for cell in cells:
        found.setdefault(cell.task, []).append(cell)
    return found


def mean_share(cells: Sequence[C], part: Callable[[C], float]) -> float:
    """Mean over tasks of the sum of `part` per answer."""
    shares = [sum(map(part, own)) / _answers(own) for own in grouped(cells).values()]
    return sum(shares) / len(shares)


def _oracle(cells: Sequence[OracleCell], whole: set[tuple[int, int]]) -> BestPerSample | None:
    """None unless it is known for all (task, n) of `whole`."""
    if {(cell.task, cell.n) for cell in cells} != whole:
        return None
    tokens, nfe = sum(cell.tokens for cell in cells), sum(cell.nfe for cell in cells)
    return BestPerSample(mean_share(cells, lambda cell: cell.right), tokens / max(nfe, 1))
