"""Points and curves of a run, against sums written out by hand and literal definitions."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dllm.errors import DllmError
from dllm.eval.curves import Point, select
from dllm.eval.records import OracleCell, Skipped
from dllm.intervals import weighted, wilson
from tests.eval.summaries import TASKS, cell, drawn, one_task, setting, summary


def only(found):
    (curve,) = found.curves
    (point,) = curve.points
    return point


class TestPoint:
    def test_tasks_count_alike_whatever_their_answers(self):
        cells = [
            cell(0, 0, 90, 500, count=100, n=4, strict=80),
            cell(0, 0, 200, 900, count=300, n=8, strict=200),
            cell(0, 1, 10, 20, count=20, n=4, strict=0),
        ]
        point = only(select(summary(cells, [setting("quota", "k=2")])))
        assert point.score == pytest.approx((290 / 400 + 10 / 20) / 2)
        assert point.strict == pytest.approx((280 / 400 + 0) / 2)
        assert point.interval == weighted([(0.5, 290, 400), (0.5, 10, 20)])
        assert (point.count, point.nfe) == (420, 1420)
        assert point.forwards == pytest.approx(1420 / 420)
        assert point.tokens == 10
        assert point.tokens_per_forward == pytest.approx(4200 / 1420)
        assert point.committed_per_forward == pytest.approx(8400 / 1420)

    def test_one_task_has_wilson_s_interval(self):
        point = only(select(one_task(("quota", "", 7, 200), count=50)))
        assert point.interval == pytest.approx(wilson(7, 50))

    def test_reasons_are_shares_of_all_answers(self):
        cells = [
            cell(0, 0, 6, 10, count=10, reasons={"ok": 6, "parse": 4}),
            cell(0, 1, 0, 10, count=10, reasons={"length": 5, "parse": 5}),
        ]
        point = only(select(summary(cells, [setting("quota")])))
        assert point.reasons == pytest.approx({"ok": 0.3, "parse": 0.45, "length": 0.25})

    def test_seconds_are_per_answer(self):
        cells = [cell(0, t, 1, 1, count=10, seconds=[1.0, 2.0 * t, 0.0, 0.5]) for t in (0, 1)]
        settings = [setting("quota")]
        assert only(select(summary(cells, settings))).seconds == pytest.approx(
            {"prompt": 0.1, "forward": 0.1, "sampler": 0, "other": 0.05}
        )
        assert only(select(summary(cells, settings, memo=True))).seconds is None


class TestSplit:
    def split(self, *cells):
        return Point(setting("quota"), cells).split

    def test_what_a_perfect_model_loses_and_what_this_one_loses_more(self):
        found = self.split(
            cell(0, 0, 90, 100, ceiling=100.0, ceiled=100, ceiled_right=90),
            cell(0, 1, 20, 100, ceiling=30.0, ceiled=100, ceiled_right=20),
        )
        assert found.tasks == 2
        assert found.ceiling == pytest.approx(0.65)
        assert found.factorisation_loss == pytest.approx(0.35)
        assert (found.model_loss, found.excess) == pytest.approx((0.1, 0))
        assert found.regret == pytest.approx(0.1)

    def test_excess_does_not_hide_a_loss_elsewhere(self):
        found = self.split(
            cell(0, 1, 40, 100, n=4, ceiling=30.0, ceiled=100, ceiled_right=40),
            cell(0, 1, 10, 100, n=8, ceiling=20.0, ceiled=100, ceiled_right=10),
        )
        assert (found.model_loss, found.excess) == pytest.approx((0.05, 0.05))
        assert found.regret == pytest.approx(0)

    def test_only_answers_with_a_known_ceiling_count(self):
        found = self.split(
            cell(0, 0, 60, 100, ceiling=40.0, ceiled=50, ceiled_right=30),
            cell(0, 1, 5, 100),
        )
        assert (found.tasks, found.ceiling, found.model_loss) == pytest.approx((1, 0.8, 0.2))

    def test_none_known(self):
        assert self.split(cell(0, 0, 60, 100)) is None

    def test_the_parts_add_up_to_what_was_lost(self):
        for point in select(drawn()).points:
            lost = point.split.factorisation_loss + point.split.model_loss - point.split.excess
            assert 1 - lost == pytest.approx(point.score)


class TestSelect:
    def test_everything(self):
        found = select(drawn())
        assert found.tasks == TASKS
        assert [curve.name for curve in found.curves] == ["confidence", "threshold"]
        assert [len(curve.points) for curve in found.curves] == [4, 5]
        assert found.left_out == ()
        assert all(point.count == 1200 for point in found.points)

    def test_the_least_parallel_point_is_first(self):
        found = select(one_task(("a", "2", 50, 200), ("a", "1", 90, 1000), ("a", "3", 60, 200)))
        assert [p.setting.option for p in found.curves[0].points] == ["1", "3", "2"]
        assert found.curves[0].pairs == [(1, 90), (5, 60), (5, 50)]
        assert found.curves[0].rates == [(0.1, 90), (0.5, 60), (0.5, 50)]

    def test_a_run_s_name_is_put_before_its_methods(self):
        assert select(one_task(("a", "", 1, 100)), run="mine").curves[0].name == "mine: a"

    @pytest.mark.parametrize(
        ("words", "tasks"),
        [
            (["copy"], TASKS[:1]),
            (["shuffle:n=4+8", "copy"], TASKS[:2]),
            (list(TASKS), TASKS),
        ],
    )
    def test_by_name_or_spec(self, words, tasks):
        assert select(drawn(), words).tasks == tasks

    def test_a_name_stands_for_all_its_specs_unless_it_is_one(self):
        def tasks(specs):
            run = summary([cell(0, t, 1, 1) for t in (0, 1)], [setting("a")], specs)
            return select(run, ["copy"]).tasks

        assert tasks(["copy:n=4", "copy:n=8"]) == ("copy:n=4", "copy:n=8")
        assert tasks(["copy", "copy:n=8"]) == ("copy",)

    def test_by_size(self):
        assert {c.n for point in select(drawn(), n=[8]).points for c in point.cells} == {8}

    def test_a_setting_without_all_answers_is_left_out(self):
        run = drawn()
        cells = [c for c in run.cells if (c.setting, c.task, c.n) != (2, 1, 8)]
        run = summary(cells, run.plan.settings, oracles=run.oracles)
        found = select(run)
        assert found.left_out == ("confidence k=4 (shuffle:n=4+8 n=8: no answers yet)",)
        assert len(found.points) == 8
        assert select(run, ["copy"]).left_out == ()
        assert select(run, n=[4]).left_out == ()

    def test_a_setting_that_cannot_answer_is_left_out_with_the_reason(self):
        settings = [setting("a"), setting("b"), setting("c")]
        run = summary([cell(0, 0, 5, 9), cell(0, 1, 5, 9), cell(1, 1, 5, 9)], settings)
        told = (Skipped(0, 0, 4, "not this"), Skipped(1, 0, 4, "small"), Skipped(2, 1, 4, "nor"))
        run = replace(run, plan=replace(run.plan, skipped=told))
        assert select(run).left_out == (
            "b (copy:n=4+8 n=4: small)",
            "c (copy:n=4+8 n=4: no answers yet)",
        )

    def test_what_no_setting_could_be_asked_is_told(self):
        """Tasks and sizes, each with its reason, and how many tasks the mean is over."""
        run = summary([cell(0, 0, 5, 9)], [setting("a")])
        told = (Skipped(0, 0, 8, "small"), Skipped(0, 1, 4, "not this"), Skipped(0, 1, 8, "nor"))
        run = replace(run, plan=replace(run.plan, skipped=told))
        found = select(run)
        assert (found.extent, found.left_out) == ("1 of 3 tasks", ())
        assert found.dropped == (
            "shuffle:n=4+8 (not this)",
            "replace_random:n=4+8,surface=infill (no answers yet)",
            "copy:n=4+8 n=8 (small)",
        )
        assert select(run, ["copy"]).dropped == ("copy:n=4+8 n=8 (small)",)
        some = select(run, ["copy", "shuffle"], n=[4])
        assert (some.extent, some.dropped) == ("1 of 2 tasks", ("shuffle:n=4+8 (not this)",))
        assert select(drawn()).dropped == ()
        assert select(drawn()).extent == "3 tasks"

    def test_cells_without_answers_do_not_count(self):
        run = summary([cell(0, 0, 5, 9), cell(0, 1, 0, 0, count=0)], [setting("a")])
        assert select(run).tasks == TASKS[:1]

    def test_a_point_of_a_part_is_the_point_of_that_part_alone(self):
        run = drawn()
        part = summary([c for c in run.cells if c.task == 1], run.plan.settings)
        assert select(run, ["shuffle"]).points == select(part).points

    @pytest.mark.parametrize(
        ("words", "n", "message"),
        [
            (["sort"], None, "no task 'sort'.*copy:n=4.8, shuffle"),
            (["copy:n=4"], None, "no task 'copy:n=4'"),
            (None, [5], "n=5: no answers.*4, 8"),
        ],
    )
    def test_what_is_not_there(self, words, n, message):
        with pytest.raises(DllmError, match=message):
            select(drawn(), words, n)

    def test_nothing_yet(self):
        with pytest.raises(DllmError, match="none yet"):
            select(summary([], [setting("a")]))

    def test_no_setting_is_whole(self):
        run = summary([cell(0, 0, 5, 9), cell(1, 1, 5, 9)], [setting("a"), setting("b")])
        with pytest.raises(DllmError, match=r"a \(shuffle:n=4\+8 n=4: no answers yet\); choose"):
            select(run)

    @given(st.lists(st.tuples(st.integers(0, 100), st.integers(100, 1000)), min_size=1, max_size=6))
    def test_nothing_is_more_parallel_than_the_reach(self, points):
        found = select(one_task(*(("a", str(i), *p) for i, p in enumerate(points))))
        assert all(x <= found.reach for x, _ in found.curves[0].pairs)
        assert found.reach == 10

    def test_the_longest_mean_answer_sets_the_reach(self):
        cells = [cell(i, 0, 50, 500, tokens=tokens) for i, tokens in enumerate((800, 1200, 900))]
        assert select(summary(cells, [setting(name) for name in "abc"])).reach == 12


class TestOracle:
    def test_mean_score_and_summed_rate(self):
        cells = [cell(0, t, 50, 500) for t in (0, 1)]
        oracles = [
            OracleCell("a", 0, 4, 100, 90, 300, 1000),
            OracleCell("a", 1, 4, 50, 20, 100, 400),
            OracleCell("b", 0, 4, 100, 1, 1, 1),
        ]
        (curve,) = select(summary(cells, [setting("a")], oracles=oracles)).curves
        assert curve.oracle.score == pytest.approx((0.9 + 0.4) / 2)
        assert curve.oracle.tokens_per_forward == pytest.approx(1400 / 400)

    def test_not_known_for_all_of_the_selection(self):
        cells = [cell(0, t, 50, 500) for t in (0, 1)]
        oracles = [OracleCell("a", 0, 4, 100, 90, 300, 1000)]
        run = summary(cells, [setting("a")], oracles=oracles)
        assert select(run).curves[0].oracle is None
        assert select(run, ["copy"]).curves[0].oracle is not None
