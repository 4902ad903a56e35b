"""Figures: what is drawn, and that the same numbers give the same file."""

import builtins
from xml.etree import ElementTree

import matplotlib
import matplotlib.figure
import numpy as np
import pytest
from matplotlib.colors import to_hex

from dllm.errors import DllmError
from dllm.eval.curves import select
from dllm.eval.figures import COLOURS, draw
from dllm.eval.records import OracleCell
from tests.eval.summaries import TASKS, drawn, one_task, summary


@pytest.fixture
def drawing(monkeypatch, tmp_path):
    """Draw, and give back the figure instead of a file."""
    kept = []
    monkeypatch.setattr(
        matplotlib.figure.Figure, "savefig", lambda figure, *_, **__: kept.append(figure)
    )

    def go(*runs, **options):
        draw([(f"run{i}", run) for i, run in enumerate(runs)], tmp_path / "a.svg", **options)
        return kept[-1]

    return go


def lines(axis, linestyle, colour):
    return [
        line
        for line in axis.get_lines()
        if line.get_linestyle() == linestyle and to_hex(line.get_color()).upper() == colour
    ]


def test_a_line_of_every_method_with_its_intervals(drawing):
    (axis,) = drawing(drawn()).axes
    assert len(axis.containers) == 2
    for bars, curve in zip(axis.containers, select(drawn()).curves, strict=True):
        line, _, (spans,) = bars
        assert list(zip(*line.get_data(), strict=True)) == curve.pairs
        found = [segment[:, 1] / 100 for segment in spans.get_segments()]
        assert np.allclose(found, [point.interval for point in curve.points])


def test_ceiling_and_oracle(drawing):
    (axis,) = drawing(drawn()).axes
    for colour, curve in zip(COLOURS, select(drawn()).curves, strict=False):
        (ceiling,) = lines(axis, ":", colour)
        assert list(ceiling.get_ydata()) == [100 * p.split.ceiling for p in curve.points]
        (oracle,) = lines(axis, "--", colour)
        assert oracle.get_xdata()[-1] == curve.oracle.tokens_per_forward
        assert set(oracle.get_ydata()) == {100 * curve.oracle.score}


def test_no_ceiling_where_a_task_has_none(drawing):
    run = drawn()
    for cell in run.cells:
        if cell.task == 2:
            cell.ceiled = 0
    whole, part = drawing(drawn()).axes[0], drawing(run).axes[0]
    assert len(lines(whole, ":", COLOURS[0])) == 1
    assert lines(part, ":", COLOURS[0]) == []


def test_the_envelope_is_the_best_at_that_many_or_more(drawing):
    run = one_task(("a", "1", 90, 1000), ("a", "2", 60, 500), ("b", "", 80, 250))
    (axis,) = drawing(run).axes
    (front,) = [line for line in axis.get_lines() if line.get_drawstyle() == "steps-pre"]
    assert list(zip(*front.get_data(), strict=True)) == [(1, 90), (1, 90), (4, 80)]


def test_the_title_says_what_the_mean_lacks(drawing):
    run = drawn()
    part = summary([c for c in run.cells if c.task < 2], run.plan.settings)
    assert [axis.get_title() for axis in drawing(part).axes] == ["mean over 2 of 3 tasks"]


def test_a_panel_of_every_chosen_task(drawing):
    titles = [axis.get_title() for axis in drawing(drawn(), tasks=["copy", "shuffle"]).axes]
    assert titles == ["mean over 2 tasks", "copy", "shuffle"]
    titles = [axis.get_title() for axis in drawing(drawn(), tasks=["copy"]).axes]
    assert titles == [TASKS[0]]
    titles = [axis.get_title() for axis in drawing(drawn()).axes]
    assert titles == ["mean over 3 tasks"]
    titles = [axis.get_title() for axis in drawing(drawn(), single=["shuffle"]).axes]
    assert titles == ["mean over 3 tasks", "shuffle"]


def test_a_panel_shows_its_task(drawing):
    figure = drawing(drawn(), tasks=["copy", "shuffle"], n=[8])
    for axis, words in zip(figure.axes, (["copy", "shuffle"], ["copy"], ["shuffle"]), strict=True):
        (expected, _) = select(drawn(), words, [8]).curves
        assert list(axis.containers[0][0].get_ydata()) == [y for _, y in expected.pairs]


def test_everything_is_inside(drawing):
    figure = drawing(drawn(), tasks=["copy", "shuffle", "replace_random"])
    assert [axis.get_subplotspec().get_geometry() for axis in figure.axes] == [
        (2, 2, i, i) for i in range(4)
    ]
    for axis in figure.axes:
        low, high = axis.get_ylim()
        left, right = axis.get_xlim()
        for line in axis.get_lines():
            assert all(low <= y <= high for y in line.get_ydata())
            assert all(left <= x <= right for x in line.get_xdata())


def test_what_is_nearly_right_is_seen_from_near(drawing):
    (axis,) = drawing(one_task(("a", "", 99, 1000), ("a", "b", 97, 500), count=100)).axes
    assert axis.get_ylim()[0] > 80


def test_a_single_setting_is_its_own_oracle(drawing):
    oracle = OracleCell("a", 0, 4, 100, 99, 1000, 1000)
    (axis,) = drawing(one_task(("a", "", 99, 1000), oracles=[oracle])).axes
    assert lines(axis, "--", COLOURS[0]) == []


def test_ticks_are_powers_of_two(drawing):
    (axis,) = drawing(drawn()).axes
    assert list(axis.get_xticks()) == [1, 2, 4, 8]
    assert [label.get_text() for label in axis.get_xticklabels()] == ["1", "2", "4", "8"]


def test_methods_are_told_apart_by_colour_and_marker(drawing):
    run = one_task(*((f"method{i}", "", 50, 100 + i) for i in range(30)))
    figure = drawing(run)
    (legend,) = figure.legends
    handles = {h.get_label(): (h.get_color(), h.get_marker()) for h in legend.legend_handles}
    methods = [looks for name, looks in handles.items() if name.startswith("method")]
    assert len(methods) == len(set(methods)) == 30
    (axis,) = figure.axes
    drawn_as = [(bars[0].get_color(), bars[0].get_marker()) for bars in axis.containers]
    assert drawn_as == methods


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_the_same_numbers_give_the_same_file(tmp_path, suffix):
    files = [tmp_path / f"{name}{suffix}" for name in "ab"]
    for file in files:
        draw([("run", drawn())], file)
    one, other = (file.read_bytes() for file in files)
    assert one == other
    if suffix == ".svg":
        ElementTree.fromstring(one)
        assert b"dc:date" not in one
    else:
        assert one.startswith(b"\x89PNG")


def test_settings_of_matplotlib_stay_as_they_were(tmp_path):
    with matplotlib.rc_context({"svg.hashsalt": "mine"}):
        draw([("run", drawn())], tmp_path / "a.svg")
        assert matplotlib.rcParams["svg.hashsalt"] == "mine"


def test_another_suffix(tmp_path):
    with pytest.raises(DllmError, match=r"a\.pdf: expected .*\.png or \.svg"):
        draw([("run", drawn())], tmp_path / "a.pdf")


def test_without_matplotlib_the_extra_is_named(tmp_path, monkeypatch):
    real = builtins.__import__

    def missing(name, *rest, **more):
        if name.partition(".")[0] == "matplotlib":
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(DllmError, match=r"dllm-engine\[plot\]"):
        draw([("run", drawn())], tmp_path / "a.svg")
