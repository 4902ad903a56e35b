"""Accuracy against tokens per forward, drawn: a line for every method, a panel for every selection.

Needs the extra `plot` (matplotlib).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dllm.errors import DllmError
from dllm.eval.curves import Curve, label, select
from dllm.eval.frontier import pareto
from dllm.eval.records import Summary
from dllm.files import destination, replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SUFFIXES = {".png": {"Software": None}, ".svg": {"Date": None}}  # what would change by itself
# Okabe and Ito's colours, told apart by colour-blind readers; then the same with other markers.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vP"
WIDTH, HEIGHT, LEGEND = 4.6, 3.8, 2.4  # inches, of a panel and beside all of them


def draw(
    runs: Sequence[tuple[str, Summary]],
    target: Path,
    *,
    tasks: Sequence[str] | None = None,
    n: Sequence[int] | None = None,
    single: Sequence[str] | None = None,
) -> None:
    """Write a .png or .svg, the same bytes for the same numbers. A panel shows the mean over
    `tasks` (default: all); each of `single` (default: `tasks`, if they are given) has its own.

    DllmError for another suffix, a selection without answers, or if matplotlib is not installed.
    """
    check_target(target)
    import matplotlib
    from matplotlib.figure import Figure

    panels = _panels(runs, tasks, n, tasks or () if single is None else single)
    names = list(dict.fromkeys(curve.name for curves in panels.values() for curve in curves))
    styles = {name: _style(i) for i, name in enumerate(names)}
    columns = 2 if len(panels) == 4 else min(len(panels), 3)
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(WIDTH * columns + LEGEND, HEIGHT * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
    for axis, (title, curves) in zip(axes, panels.items()):
        _panel(axis, title, curves, styles)
    for axis in axes[len(panels) :]:
        axis.remove()
    for axis in axes[::columns]:
        axis.set_ylabel("right answers, %")
    points = [point for curves in panels.values() for curve in curves for point in curve.points]
    axes[0].set_ylim(100 * min(point.interval[0] for point in points) - 3, 102)
    figure.legend(handles=_legend(styles), loc="outside right upper", frameon=False, fontsize=8)
    kind, metadata = target.suffix[1:], SUFFIXES[target.suffix]
    with matplotlib.rc_context({"svg.hashsalt": "dllm"}), replacing(target) as temp:
        figure.savefig(temp, dpi=160, format=kind, metadata=metadata)


def check_target(target: Path) -> None:
    """DllmError where no figure can be written to `target`."""
    if target.suffix not in SUFFIXES:
        raise DllmError(f"{target}: expected a name that ends in {' or '.join(SUFFIXES)}")
    destination(target)
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise DllmError(
            "figures need matplotlib: install the extra, pip install 'dllm-engine[plot]'"
        ) from error


def _panels(
    runs: Sequence[tuple[str, Summary]],
    tasks: Sequence[str] | None,
    n: Sequence[int] | None,
    single: Sequence[str],
) -> dict[str, list[Curve]]:
    """Title -> curves."""

    def curves(words: Sequence[str] | None) -> list[Curve]:
        selections = [select(run, words, n, name if len(runs) > 1 else "") for name, run in runs]
        return [curve for selection in selections for curve in selection.curves]

    chosen = select(runs[0][1], tasks, n)
    if chosen.asked == 1:
        return {chosen.tasks[0]: curves(tasks)}
    mean = {f"mean over {chosen.extent}": curves(tasks)}
    return mean | {label(word, single): curves([word]) for word in single}


def _panel(axis: Axes, title: str, curves: Sequence[Curve], styles: dict[str, Any]) -> None:
    front = pareto([pair for curve in curves for pair in curve.pairs])
    least, best = front[0]
    envelope = [(min(least, 1.0), best), *front]
    axis.step(*zip(*envelope), where="pre", color="0.88", linewidth=4, zorder=1)
    for curve in curves:
        _line(axis, curve, styles[curve.name])
    axis.set(xlabel="tokens per forward", xscale="log")
    axis.set_title(title, fontsize=10)
    most = max(x for curve in curves for x, _ in curve.pairs)
    ticks = [2**i for i in range(12) if 2**i <= max(2, 1.2 * most)]
    axis.set_xticks(ticks, [str(tick) for tick in ticks])
    axis.set_xticks([], minor=True)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)


def _line(axis: Axes, curve: Curve, style: dict[str, Any]) -> None:
    """Scores with their intervals, the ceiling where it is known, and the per-sample oracle."""
    x, y = zip(*curve.pairs)
    limits = [[100 * limit for limit in point.interval] for point in curve.points]
    bars = [
        [max(score - low, 0) for score, (low, _) in zip(y, limits)],
        [max(high - score, 0) for score, (_, high) in zip(y, limits)],
    ]
    axis.errorbar(x, y, yerr=bars, linewidth=1.3, elinewidth=0.8, markersize=4, zorder=3, **style)
    known = [p.split for p in curve.points if p.split and p.split.tasks == len(p.by_task)]
    if len(known) == len(x):
        ceilings = [100 * split.ceiling for split in known]
        axis.plot(x, ceilings, linestyle=":", linewidth=1.3, color=style["color"], zorder=2)
    if curve.oracle and len(x) > 1:
        end, best = curve.oracle.tokens_per_forward, 100 * curve.oracle.score
        hollow: dict[str, Any] = {"markerfacecolor": "white", "markevery": [1], "markersize": 6}
        axis.plot([x[0], end], [best, best], linestyle="--", linewidth=0.9, **hollow, **style)


def _style(index: int) -> dict[str, Any]:
    return {
        "color": COLOURS[index % len(COLOURS)],
        "marker": MARKERS[(index % len(COLOURS) + index // len(COLOURS)) % len(MARKERS)],
    }


def _legend(styles: dict[str, Any]) -> list[Any]:
    from matplotlib.lines import Line2D

    marks: dict[str, dict[str, Any]] = {
        "per-sample oracle": {"linestyle": "--", "marker": "o", "markerfacecolor": "white"},
        "ceiling: a perfect model": {"linestyle": ":"},
        "best of all at that many or more": {"color": "0.88", "linewidth": 4},
    }
    methods = [Line2D([], [], label=name, markersize=4, **style) for name, style in styles.items()]
    return methods + [
        Line2D([], [], label=name, **{"color": "0.3", "linewidth": 1, **style})
        for name, style in marks.items()
    ]
