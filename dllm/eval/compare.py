"""Differences between two runs, or between two settings, on the same questions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from dllm.errors import DllmError
from dllm.eval.curves import Curve, Point, select
from dllm.eval.frontier import points_more, times_faster
from dllm.eval.records import Summary
from dllm.intervals import weighted


@dataclass(frozen=True)
class Change:
    """Two points on the same questions. where: the task and size, "" for the mean over tasks."""

    where: str
    new: Point
    old: Point

    @property
    def gain(self) -> float:
        return self.new.score - self.old.score

    @property
    def interval(self) -> tuple[float, float]:
        """95% interval of the gain for independent samples: too wide, not too narrow, where both
        sides answered the same ones.
        """
        return weighted([*self.new.tally(), *self.old.tally(-1)])

    @property
    def is_clear(self) -> bool:
        low, high = self.interval
        return low > 0 or high < 0

    @property
    def forwards(self) -> float:
        """Forwards of the new one per forward of the old one."""
        return self.new.nfe / max(self.old.nfe, 1) * self.old.count / self.new.count


@dataclass(frozen=True)
class CurveChange:
    """One method's curve in two runs; rates are answers per forward."""

    new: Curve
    old: Curve

    @property
    def times_fewer_forwards(self) -> float:
        """At equal score, the mean over scores that both reach."""
        return times_faster(self.new.rates, self.old.rates)

    @property
    def points_more(self) -> float:
        """Percentage points of score at equal forwards, the mean over what both span."""
        return points_more(self.new.rates, self.old.rates)


@dataclass(frozen=True)
class Comparison:
    """settings: means over the cells that both runs have. cells: these one by one. curves: of the
    methods that both runs have. reach: the larger of the two.
    """

    settings: tuple[Change, ...]
    cells: tuple[Change, ...]
    curves: tuple[CurveChange, ...]
    reach: float


def compare(
    new: Summary,
    old: Summary,
    tasks: Sequence[str] | None = None,
    n: Sequence[int] | None = None,
) -> Comparison:
    """Gains of `new` over `old` on the selection; DllmError where they share no task."""
    shared = [task for task in select(new, tasks, n).tasks if task in old.plan.tasks]
    if not shared:
        raise DllmError(
            f"the runs share no task: {', '.join(new.plan.tasks)} and {', '.join(old.plan.tasks)}"
        )
    ours, theirs = select(new, shared, n), select(old, shared, n)
    found = [
        changes(point, new.plan.tasks, other, old.plan.tasks)
        for point in ours.points
        if (other := _same(point, theirs.points))
    ]
    methods = {curve.name: curve for curve in theirs.curves}
    return Comparison(
        settings=tuple(each[0] for each in found if each),
        cells=tuple(change for each in found for change in each[1:]),
        curves=tuple(CurveChange(c, methods[c.name]) for c in ours.curves if c.name in methods),
        reach=max(ours.reach, theirs.reach),
    )


def _same(point: Point, others: Sequence[Point]) -> Point | None:
    """The one of `others` that decodes alike; of several, the one of the same name."""
    alike = [other for other in others if other.setting.key == point.setting.key]
    same = (other for other in alike if other.setting.name == point.setting.name)
    return next(same, alike[0] if alike else None)


def changes(
    new: Point, new_tasks: Sequence[str], old: Point, old_tasks: Sequence[str]
) -> tuple[Change, ...]:
    """Of two settings: the mean over the tasks and sizes that both have, then each of these; ()
    where there are none. Each point comes with the tasks of its plan.
    """
    ours = {(new_tasks[cell.task], cell.n): cell for cell in new.cells}
    theirs = {(old_tasks[cell.task], cell.n): cell for cell in old.cells}
    shared = [key for key in ours if key in theirs]

    def change(where: str, keys: Sequence[tuple[str, int]]) -> Change:
        side = replace(new, cells=tuple(ours[key] for key in keys))
        return Change(where, side, replace(old, cells=tuple(theirs[key] for key in keys)))

    if not shared:
        return ()
    return (change("", shared), *(change(f"{spec} n={n}", [(spec, n)]) for spec, n in shared))
