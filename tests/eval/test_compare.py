"""Two runs on the same questions: which cells are paired, and what the differences are."""

import pytest

from dllm.errors import DllmError
from dllm.eval.compare import changes, compare
from dllm.eval.curves import select
from dllm.eval.records import EvalSetting
from dllm.intervals import weighted
from tests.eval.summaries import cell, drawn, one_task, setting, summary


def by_task(new, old):
    """Runs of one setting; new, old: {task: (right, forwards in all)}."""
    runs = [
        summary([cell(0, i, *counts) for i, counts in enumerate(run.values())], [setting("a")], run)
        for run in (new, old)
    ]
    return compare(*runs)


def test_a_run_has_not_changed_against_itself():
    run = drawn()
    found = compare(run, run)
    assert len(found.settings) == 9
    assert len(found.cells) == 9 * 3 * 2
    for change in (*found.settings, *found.cells):
        assert (change.gain, change.forwards) == (0, 1)
        assert not change.is_clear
    for curve in found.curves:
        assert (curve.times_fewer_forwards, curve.points_more) == (1, 0)


def test_tasks_are_paired_by_spec_wherever_they_stand():
    found = by_task(
        {"copy": (90, 300), "sort": (40, 200), "new": (1, 100)},
        {"old": (1, 100), "sort": (60, 400), "copy": (85, 300)},
    )
    assert [change.where for change in found.cells] == ["copy n=4", "sort n=4"]
    assert [change.gain for change in found.cells] == pytest.approx([0.05, -0.2])
    assert [change.forwards for change in found.cells] == [1, 0.5]
    (mean,) = found.settings
    assert mean.where == ""
    assert mean.gain == pytest.approx((0.05 - 0.2) / 2)
    assert mean.forwards == pytest.approx(500 / 700)
    parts = [(0.5, 90, 100), (0.5, 40, 100), (-0.5, 85, 100), (-0.5, 60, 100)]
    assert mean.interval == pytest.approx(weighted(parts))
    (curve,) = found.curves
    assert curve.new.pairs == [(pytest.approx(4), pytest.approx(65))]
    assert curve.old.pairs == [(pytest.approx(20 / 7), pytest.approx(72.5))]


def test_only_cells_that_both_have_are_compared():
    both = setting("a")
    new = summary([cell(0, 0, 50, 100, n=4), cell(0, 0, 90, 100, n=8)], [both], ["copy"])
    old = summary([cell(0, 0, 40, 100, n=4), cell(0, 0, 10, 100, n=6)], [both], ["copy"])
    found = compare(new, old)
    assert [change.where for change in found.cells] == ["copy n=4"]
    assert found.settings[0].gain == pytest.approx(0.1)
    apart = summary([cell(0, 0, 40, 100, n=12)], [both], ["copy"])
    assert (compare(new, apart).settings, compare(new, apart).cells) == ((), ())


def test_forwards_are_per_answer():
    new = one_task(("a", "", 50, 300), count=100)
    old = one_task(("a", "", 50, 300), count=50)
    assert compare(new, old).settings[0].forwards == pytest.approx(0.5)


def test_settings_are_paired_by_their_options_and_curves_by_method():
    new = one_task(("a", "1", 90, 500), ("b", "1", 90, 500))
    old = one_task(("a", "2", 90, 1000), ("c", "1", 90, 500))
    found = compare(new, old)
    assert found.settings == ()
    (curve,) = found.curves
    assert curve.new.name == "a"
    assert curve.times_fewer_forwards == pytest.approx(2)
    assert curve.points_more == pytest.approx(0)


def test_of_settings_that_decode_alike_those_of_one_name_are_paired():
    names = ("rule", "preset")
    alike = [EvalSetting(name, "", {"sampler": "threshold"}) for name in names]
    new = summary([cell(0, 0, 50, 100), cell(1, 0, 60, 100)], alike)
    old = summary([cell(0, 0, 10, 100), cell(1, 0, 20, 100)], alike[::-1])
    found = compare(new, old)
    assert [(c.new.setting.name, c.old.score) for c in found.settings] == [
        ("rule", 0.2),
        ("preset", 0.1),
    ]
    renamed = summary([cell(0, 0, 30, 100)], [EvalSetting("other", "", {"sampler": "threshold"})])
    assert [c.old.score for c in compare(new, renamed).settings] == [0.3, 0.3]


@pytest.mark.parametrize(
    ("new", "old", "clear"), [(90, 60, True), (60, 90, True), (61, 60, False), (60, 61, False)]
)
def test_a_clear_change_is_one_whose_interval_leaves_out_zero(new, old, clear):
    found = by_task({"copy": (new, 100)}, {"copy": (old, 100)})
    assert found.cells[0].is_clear is clear
    assert (found.cells[0].gain > 0) is (new > old)


def test_the_larger_reach_is_taken():
    long, short = one_task(("a", "", 1, 100)), one_task(("a", "", 1, 50), count=50)
    short.cells[0].tokens //= 2
    assert compare(long, short).reach == compare(short, long).reach == 10


def test_the_selection_is_kept_to():
    run = drawn()
    assert {c.where for c in compare(run, run, ["shuffle"], [8]).cells} == {"shuffle:n=4+8 n=8"}


def test_no_common_task():
    with pytest.raises(DllmError, match=r"share no task: copy and sort"):
        by_task({"copy": (1, 100)}, {"sort": (1, 100)})


def test_two_settings_of_one_run():
    run = drawn()
    one, other = (select(run).curves[0].points[i] for i in (0, 3))
    mean, *cells = changes(one, run.plan.tasks, other, run.plan.tasks)
    assert mean.gain == pytest.approx(one.score - other.score)
    assert mean.forwards == pytest.approx(one.forwards / other.forwards)
    assert len(cells) == 6
