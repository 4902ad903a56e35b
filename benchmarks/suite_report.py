"""The tables of docs/results.md and its figure, from the runs in benchmarks/results/suite.

The runs are made by `dllm eval run` with the commands in that page; --pack RUN... takes their
summaries over, compressed. Run: python -m benchmarks.suite_report (needs the extra `plot`).
"""

from __future__ import annotations

import gzip
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.common import DOCS, RESULTS, arguments, fill
from dllm.eval.curves import Curve, Point, label, select
from dllm.eval.distributions import distributions
from dllm.eval.figures import draw
from dllm.eval.frontier import best_at
from dllm.eval.records import Summary
from dllm.eval.report import read_summary, report
from dllm.eval.tables import NONE, TextTable, number, percent, span
from dllm.intervals import weighted, wilson

SUITE = RESULTS / "suite"
CACHES = ("none", "dual", "vicinity")
DEPENDENT = ("shuffle", "replace_random", "insert_random", "remove_random")
MODEL_LIMITED = ("sort", "sudoku", "word_problem")
PANELS = ("shuffle", "replace_random", "sort", "sudoku", "word_problem")
SHOWN = (  # methods of the figure: with all of them no line can be followed
    "quota",
    "quota:remasking=random",
    "threshold",
    "factor",
    "eb",
    "localleap",
    "klass",
)
FAST = 4.0  # tokens per forward


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table alone: the page has titles and notes of its own."""
    return plain(TextTable("", tuple(columns), tuple(map(tuple, rows))))


def plain(table: TextTable) -> str:
    return replace(table, notes=()).markdown().split("\n", 2)[2].strip()


def headline(run: Summary) -> str:
    """Every rule at its usual option, the best score first."""
    points = [point for point in select(run).points if not point.setting.option]
    columns = ["rule", "right, %", "95%", "forwards / answer", "tokens / forward"]
    columns += ["lost by factorisation", "lost by the model"]
    rows = []
    for point in sorted(points, key=lambda point: -point.score):
        split = point.split
        losses = [split.factorisation_loss, split.regret] if split else []
        rows.append(
            [
                f"`{point.setting.method}`",
                percent(point.score),
                span(point.interval),
                number(point.forwards, 1),
                number(point.tokens_per_forward),
                *(percent(loss) for loss in losses),
            ]
        )
    return markdown(columns, rows)


def caches(run: Summary) -> str:
    """Every rule and preset with each cache: score at tokens per forward."""
    found: dict[str, dict[str, Point]] = {}
    for point in select(run).points:
        cache = point.setting.options.get("cache", "none")
        cache = cache if cache in CACHES else "own"
        method = point.setting.method
        for word in CACHES:
            method = method.removesuffix(f" + {word}")
        found.setdefault(method, {})[cache] = point
    rows = [
        [f"`{method}`", *(said(by_cache.get(cache)) for cache in (*CACHES, "own"))]
        for method, by_cache in found.items()
    ]
    return markdown(["rule or preset", *(f"`{cache}`" for cache in CACHES), "its own"], rows)


def said(point: Point | None) -> str:
    return NONE if point is None else f"{percent(point.score)} at {point.tokens_per_forward:.2f}"


def orders(run: Summary) -> str:
    """The same number of tokens per forward, by confidence and in random order."""
    columns = ["task", *(f"{k} a forward: confidence, random" for k in (1, 2, 4)), "better"]
    columns += ["ceilings at 2 a forward"]
    rows = []
    for task in (*DEPENDENT, *MODEL_LIMITED):
        by = {
            (order, k): point
            for point in select(run, [task]).points
            for order in ("", "remasking=random,")
            for k in (1, 2, 4)
            if point.setting.options == {"sampler": f"quota:{order}count={k}"}
        }
        pairs = [(by["", k], by["remasking=random,", k]) for k in (1, 2, 4)]
        cells = [f"{percent(one.score)}, {percent(two.score)}" for one, two in pairs]
        splits = [point.split for point in pairs[1]]
        ceilings = ", ".join(percent(split.ceiling if split else None) for split in splits)
        rows.append([task, *cells, better(pairs), ceilings])
    return markdown(columns, rows)


def better(pairs: Sequence[tuple[Point, Point]]) -> str:
    """Which of the two orders has more right answers in all `pairs` (confidence, random) together;
    either, where the 95% interval of the difference holds 0.
    """
    low, high = weighted([t for one, two in pairs for t in (*one.tally(-1), *two.tally())])
    return "random" if low > 0 else "confidence" if high < 0 else "either"


def unsolved(run: Summary) -> str:
    """Task by task: the best of all settings, slow and fast, and the best one for every sample."""
    columns = ["task", "best", "at tokens / forward", f"best at {FAST:.0f} or more"]
    columns += ["its ceiling", "best option for every sample"]
    rows = []
    for spec in run.plan.tasks:
        curves = select(run, [spec]).curves
        points = [point for curve in curves for point in curve.points]
        best = max(points, key=lambda p: (p.score, p.tokens_per_forward))
        fast = [p for p in points if p.tokens_per_forward >= FAST]
        fastest = max(fast, key=lambda p: p.score, default=None)
        oracles = [curve.oracle for curve in curves if curve.oracle is not None]
        oracle = max(oracles, key=lambda o: (o.score, o.tokens_per_forward))
        split = fastest.split if fastest else None
        rows.append(
            [
                label(spec, run.plan.tasks),
                f"{percent(best.score)} `{best.setting.name}`",
                number(best.tokens_per_forward),
                f"{percent(fastest.score)} `{fastest.setting.name}`" if fastest else NONE,
                percent(split.ceiling) if split else NONE,
                f"{percent(oracle.score)} at {oracle.tokens_per_forward:.2f}",
            ]
        )
    return markdown(columns, rows)


def winners(run: Summary) -> str:
    """Which methods have the best score of a task at some parallelism, or lie in its interval."""
    rows = []
    for spec in run.plan.tasks:
        selection = select(run, [spec])
        rows.append(
            [label(spec, run.plan.tasks), *(winner(selection.curves, x) for x in (1, 2, 4, 8))]
        )
    return markdown(["task", *(f"≥ {x} tokens / forward" for x in (1, 2, 4, 8))], rows)


def winner(curves: Sequence[Curve], x: float) -> str:
    scores = {curve.name: best_at(curve.pairs, x) for curve in curves}
    known = {method: score for method, score in scores.items() if score is not None}
    if not known:
        return NONE
    best = max(known.values())
    count = curves[0].points[0].count
    low, _ = wilson(round(best / 100 * count), count)
    near = [method for method, score in known.items() if score >= 100 * low]
    methods = f"{len(near)} of {len(known)}" if len(near) > 5 else ", ".join(f"`{m}`" for m in near)
    return f"{best:.1f} {methods}"


def phases(run: Summary) -> str:
    """Where an answer's milliseconds go."""
    columns = ["setting", "prompt", "forward", "sampler", "other", "ms / answer", "tokens / s"]
    rows = []
    for point in select(run).points:
        seconds = point.seconds
        if seconds is None:
            continue
        total = sum(seconds.values())
        shares = [f"{part / total:.0%}" for part in seconds.values()]
        rate = point.tokens / total
        rows.append([f"`{point.setting.name}`", *shares, f"{1e3 * total:.1f}", f"{rate:.0f}"])
    return markdown(columns, rows)


def pack(run: Path) -> None:
    """Take a run's summary over as NAME.json.gz, the same bytes for the same numbers."""
    SUITE.mkdir(parents=True, exist_ok=True)
    content = (run / "summary.json").read_bytes()
    (SUITE / f"{run.name}.json.gz").write_bytes(gzip.compress(content, mtime=0))


def shown(run: Summary) -> Summary:
    """The run without the settings that are not drawn."""
    kept = {i for i, setting in enumerate(run.plan.settings) if setting.method in SHOWN}
    cells = tuple(cell for cell in run.cells if cell.setting in kept)
    return Summary(run.plan, cells, tuple(o for o in run.oracles if o.method in SHOWN))


def read() -> dict[str, Summary]:
    """The committed runs by name."""
    return {path.name.partition(".")[0]: read_summary(path) for path in SUITE.glob("*.json.gz")}


def tables(runs: Mapping[str, Summary]) -> dict[str, str]:
    """What stands between the marks of docs/results.md."""
    methods = next(t for t in report([("curves", runs["curves"])]) if t.title == "Methods")
    notes = "\n".join(f"- {note}" for note in methods.notes)
    return {
        "tasks": plain(distributions(runs["headline"].plan.tasks)),
        "headline": headline(runs["headline"]),
        "caches": caches(runs["caches"]),
        "methods": f"{plain(methods)}\n\n{notes}",
        "winners": winners(runs["curves"]),
        "orders": orders(runs["headline"]),
        "unsolved": unsolved(runs["curves"]),
        "phases": phases(runs["timed"]),
    }


def main() -> None:
    options = {"--pack": {"nargs": "*", "type": Path, "default": [], "help": "runs to take over"}}
    for run in arguments(__doc__, options).pack:
        pack(run)
    runs = read()
    fill(DOCS / "results.md", tables(runs))
    draw([("tiny", shown(runs["curves"]))], DOCS / "results.svg", single=PANELS)


if __name__ == "__main__":
    main()
