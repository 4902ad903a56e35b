"""The tables of one or more runs: settings, methods, tasks, errors, and what changed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from dllm.errors import DllmError
from dllm.eval.compare import Change, Comparison, compare
from dllm.eval.curves import Curve, CurveSelection, label, select
from dllm.eval.frontier import (
    Pair,
    aup,
    best_at,
    centre_of_mass,
    log_area,
    parallelism_at,
    pareto,
)
from dllm.eval.packed import read_packed
from dllm.eval.records import PHASES, SCHEMA, Summary
from dllm.eval.tables import NONE, TextTable, number, percent, signed, span
from dllm.eval.tasks.base import REASONS
from dllm.files import parse_json

Run = tuple[str, Summary]  # what to call it, and its numbers
LEVELS = (90.0, 80.0, 70.0)  # the x of PBx
RATES = (1, 2, 4, 8)  # tokens per forward at which methods are compared task by task
SHOWN = 20  # changed cells that are listed one by one
CURVE_NOTES = (
    "forwards: the geometric mean over the scores that both reach; score: the mean over log "
    "forwards that both span; by lines between settings on the front (Bjøntegaard's deltas)",
    "LPA up to the same tokens / forward; PBx interpolated",
)
SETTING_NOTES = (
    "*: on the front: no other setting of the run is better in score and tokens / forward",
    "score: share of right answers, the mean over tasks, each of which counts alike; 95%: its "
    "interval (Wilson's half-widths, added over tasks as standard errors are)",
    "tokens / forward: answer tokens up to and including the end, over all forwards, wrong answers "
    "too; committed / forward counts the padding behind the end too",
)
COST_NOTES = (
    "factorisation loss: percentage points that a perfect model loses by the same commits; model "
    "loss: what this model loses more; excess: where it loses less (of few answers, by chance)",
    "order: mean of Kendall's tau between the places of an answer's tokens and the order of their "
    "commits; 1: one by one from left to right, 0: all at once, or in no order",
    "ms: per answer; none where forwards were remembered between settings",
)
CHANGE_NOTES = (
    "the mean over the tasks and sizes that both have; 95%: as of independent samples, too wide "
    "where both answered the same ones",
    "forwards: per answer, as a multiple of before",
)


def read_summary(path: Path) -> Summary:
    """The summary of a run's directory, or of a summary.json or .json.gz; DllmError."""
    if path.is_dir():
        plain = path / "summary.json"
        packed = path / "summary.json.gz"
        path = packed if packed.exists() and not plain.exists() else plain
    data = parse_json(read_packed(path), str(path))
    try:
        return Summary.from_dict(data)
    except ValueError as error:
        raise DllmError(f"{path}: expected a run's summary of schema {SCHEMA} ({error})") from error


def report(
    runs: Sequence[Run],
    *,
    against: Run | None = None,
    tasks: Sequence[str] | None = None,
    n: Sequence[int] | None = None,
    reach: float | None = None,
) -> list[TextTable]:
    """The tables of `runs` on the selection (of `curves.select`), and what each run gains over
    `against`. reach: tokens per forward up to which areas go; default: the most that can be.
    """
    if len({name for name, _ in runs}) < len(runs):
        raise DllmError(f"runs {', '.join(name for name, _ in runs)}: expected different names")
    several = len(runs) > 1
    selections = [select(run, tasks, n, name if several else "") for name, run in runs]
    curves = [curve for selection in selections for curve in selection.curves]
    tables = [
        _settings(runs, selections),
        _costs(curves),
        _metrics(curves, reach or max(selection.reach for selection in selections)),
        *_by_task(runs, selections, n, reach),
        _reasons(curves),
    ]
    if against is not None:
        for run in runs:
            tables += _changes(run, against, compare(run[1], against[1], tasks, n), reach)
    return [table.filled() for table in tables]


def _settings(runs: Sequence[Run], selections: Sequence[CurveSelection]) -> TextTable:
    """A row for every setting; those on the front of its run are marked."""
    columns = ["method", "option", "*", "score, %", "95%", "strict, %"]
    columns += ["forwards / answer", "tokens / forward", "committed / forward"]
    rows = []
    for selection in selections:
        front = pareto([pair for curve in selection.curves for pair in curve.pairs])
        for curve in selection.curves:
            for point, pair in zip(curve.points, curve.pairs):
                row = (
                    curve.name,
                    point.setting.option,
                    "*" * (pair in front),
                    percent(point.score),
                    span(point.interval),
                    percent(point.strict),
                    number(point.forwards, 1),
                    number(point.tokens_per_forward),
                    number(point.committed_per_forward),
                )
                rows.append(row)
    notes = [
        warning for (name, _), each in zip(runs, selections) for warning in _dropped(name, each)
    ]
    notes += [
        f"{name}: {_about(run, selection)}" for (name, run), selection in zip(runs, selections)
    ]
    for (name, _), selection in zip(runs, selections):
        if selection.left_out:
            notes.append(f"{name}: left out: {', '.join(selection.left_out)}")
    if len({(run.plan.suite, s.tasks) for (_, run), s in zip(runs, selections)}) > 1:
        notes.append("the runs differ in suite or tasks: their means do not compare")
    extents = {each.extent for each in selections if each.dropped}
    title = f"Settings: {', '.join(sorted(extents))}" if extents else "Settings"
    return TextTable(title, tuple(columns), tuple(rows), (*notes, *SETTING_NOTES), texts=3)


def _dropped(name: str, selection: CurveSelection) -> Iterator[str]:
    """A note on what a run's mean lacks, if anything."""
    if selection.dropped:
        yield (
            f"WARNING: {name}: the mean is over {selection.extent}; not asked, and not in it: "
            f"{'; '.join(selection.dropped)}"
        )


def _costs(curves: Sequence[Curve]) -> TextTable:
    """Losses by cause, commit order and time by phase, for every setting."""
    columns = ["method", "option", "factorisation loss", "model loss", "excess", "order"]
    columns += [f"{phase}, ms" for phase in PHASES]
    rows, known = [], set()
    for curve in curves:
        for point in curve.points:
            split, seconds = point.split, point.seconds
            losses: tuple[float | None, ...] = (None, None, None)
            if split:
                losses = split.factorisation_loss, split.model_loss, split.excess
                known.add((split.tasks, len(point.by_task)))
            times = [number(1000 * seconds[phase], 1) if seconds else NONE for phase in PHASES]
            shares = *map(percent, losses), number(point.order)
            rows.append((curve.name, point.setting.option, *shares, *times))
    notes = list(COST_NOTES)
    if any(some < every for some, every in known):
        some, every = min(known)
        notes.append(f"the losses are those of the {some} of {every} tasks with a known ceiling")
    return TextTable("Losses and time", tuple(columns), tuple(rows), tuple(notes), texts=2)


def _about(run: Summary, selection: CurveSelection) -> str:
    plan = run.plan
    model = " ".join(str(plan.model.get(key, "")) for key in ("name", "dtype", "device")).strip()
    counts = [point.count for point in selection.points]
    answers = " to ".join(str(count) for count in sorted({min(counts), max(counts)}))
    return f"{plan.suite}, {model}, {answers} answers per setting to {', '.join(selection.tasks)}"


def _metrics(curves: Sequence[Curve], reach: float) -> TextTable:
    """A row for every method."""
    columns = ["method", "LPA", *(f"PB{level:.0f}" for level in LEVELS), "AUP", "centre", "oracle"]
    best = max(y for curve in curves for _, y in curve.pairs)
    rows = []
    for curve in curves:
        pairs, oracle = curve.pairs, curve.oracle
        rows.append(
            (
                curve.name,
                number(log_area(pairs, reach), 1),
                *(_reached(pairs, level) for level in LEVELS),
                number(aup(pairs, best), 1),
                number(centre_of_mass(pairs)),
                f"{percent(oracle.score)} at {oracle.tokens_per_forward:.2f}" if oracle else NONE,
            )
        )
    notes = (
        f"LPA: mean over log2 of 1 to {reach:.2f} tokens / forward of the best score at that "
        "many or more, %",
        "PBx: most tokens / forward at a score of at least x%, measured and interpolated between "
        f"settings on the front; {NONE} if never",
        f"AUP: as d3LLM defines it, best score y_max = {best:.1f}%",
        "centre: mean tokens / forward, weighted by score, of the settings that were run",
        "oracle: score, %, and tokens / forward with the best setting of the method for every "
        "single sample, of those the one with the fewest forwards",
    )
    return TextTable("Methods", tuple(columns), tuple(rows), notes)


def _reached(pairs: Sequence[Pair], level: float) -> str:
    measured, between = (parallelism_at(pairs, level, interpolate=i) for i in (False, True))
    return NONE if measured is None else f"{number(measured)} {number(between)}"


def _by_task(
    runs: Sequence[Run],
    selections: Sequence[CurveSelection],
    n: Sequence[int] | None,
    reach: float | None,
) -> list[TextTable]:
    """Task by task: who is best at which parallelism, and every method's area."""
    tasks = list(dict.fromkeys(task for selection in selections for task in selection.tasks))
    names = [curve.name for selection in selections for curve in selection.curves]
    winners, areas = [], []
    for task in tasks:
        one = [
            select(run, [task], n, name if len(runs) > 1 else "")
            for (name, run), selection in zip(runs, selections)
            if task in selection.tasks
        ]
        curves = {curve.name: curve.pairs for selection in one for curve in selection.curves}
        most = reach or max(selection.reach for selection in one)
        winners.append((label(task, tasks), *(_winner(curves, x) for x in RATES)))
        found = (log_area(curves[name], most) if name in curves else None for name in names)
        areas.append((label(task, tasks), *(number(area, 1) for area in found)))
    best = "best score, %, at that many tokens / forward or more, and the methods that have it"
    end = f"{reach:.2f}" if reach else "what a task allows: its longest mean answer in one forward"
    return [
        TextTable(
            "Best method by task", ("task", *(f"≥ {x}" for x in RATES)), tuple(winners), (best,)
        ),
        TextTable(
            "LPA by task", ("task", *names), tuple(areas), (f"tokens / forward up to {end}",)
        ),
    ]


def _winner(curves: Mapping[str, Sequence[Pair]], x: float) -> str:
    scores = {
        name: score for name, pairs in curves.items() if (score := best_at(pairs, x)) is not None
    }
    if not scores:
        return NONE
    best = max(scores.values())
    names = [name for name, score in scores.items() if score == best]
    everyone = len(names) == len(curves) > 1
    return f"{best:.1f} {'all' if everyone else ', '.join(names)}"


def _reasons(curves: Sequence[Curve]) -> TextTable:
    """Reasons of wrong answers, the most frequent first."""
    points = [(curve.name, point, point.reasons) for curve in curves for point in curve.points]
    total: Counter[str] = Counter()
    for _, _, reasons in points:
        total.update(reasons)
    codes = [code for code, _ in total.most_common() if code != "ok"]
    rows = (
        (name, point.setting.option, percent(point.score), *(percent(found.get(c)) for c in codes))
        for name, point, found in points
    )
    meanings = (f"{code}: {REASONS[code]}" for code in codes if code in REASONS)
    notes = ("of all answers, %, the mean over tasks", *meanings)
    return TextTable("Errors", ("method", "option", "right", *codes), tuple(rows), notes, texts=2)


def _changes(new: Run, old: Run, found: Comparison, reach: float | None) -> list[TextTable]:
    """Gains of a run over another one: by method, by setting, and in single cells."""
    reach = reach or found.reach
    columns = ["method", "forwards, times fewer", "score, points more", "LPA before", "LPA"]
    for level in LEVELS:
        columns += [f"PB{level:.0f} before", f"PB{level:.0f}"]
    rows = []
    for change in found.curves:
        both = change.old.pairs, change.new.pairs
        at = (
            number(parallelism_at(pairs, level, interpolate=True))
            for level in LEVELS
            for pairs in both
        )
        areas = (number(log_area(pairs, reach), 1) for pairs in both)
        gaps = number(change.times_fewer_forwards), signed(change.points_more)
        rows.append((change.new.name, *gaps, *areas, *at))
    title = f"{new[0]} against {old[0]}"
    suites = new[1].plan.suite, old[1].plan.suite
    warning = () if len(set(suites)) == 1 else (f"other questions: suites {' and '.join(suites)}",)
    clear = sorted((c for c in found.cells if c.is_clear), key=lambda c: -abs(c.gain))
    chance = (
        f"{len(clear)} of {len(found.cells)} differ clearly (about {0.05 * len(found.cells):.0f} "
        f"would by chance); at most {SHOWN} are shown, the largest change first",
    )
    return [
        TextTable(f"{title}: methods", tuple(columns), tuple(rows), CURVE_NOTES + warning),
        _change_table(f"{title}: settings", found.settings, CHANGE_NOTES),
        _change_table(f"{title}: tasks and sizes", clear[:SHOWN], chance),
    ]


def _change_table(title: str, changes: Sequence[Change], notes: tuple[str, ...]) -> TextTable:
    columns = ("setting", "task", "before, %", "score, %", "gain", "95%", "forwards")
    rows = (
        (
            change.new.setting.name,
            change.where,
            percent(change.old.score),
            percent(change.new.score),
            signed(100 * change.gain),
            " to ".join(signed(100 * limit) for limit in change.interval),
            f"×{change.forwards:.2f}",
        )
        for change in changes
    )
    return TextTable(title, columns, tuple(rows), notes, texts=2)
