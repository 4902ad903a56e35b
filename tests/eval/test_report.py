"""The tables of runs: what stands in them, in both ways to write them, and files that are none."""

import gzip
import io
import json
import re
from dataclasses import replace

import pytest
from rich.console import Console

from dllm.errors import DllmError
from dllm.eval.curves import select
from dllm.eval.frontier import aup, log_area, parallelism_at
from dllm.eval.records import OracleCell, Skipped
from dllm.eval.report import read_summary, report
from dllm.eval.tables import TextTable
from tests.eval.summaries import TASKS, cell, drawn, one_task, setting, summary


def tables(*runs, **options):
    return {t.title: t for t in report([(f"run{i}", run) for i, run in enumerate(runs)], **options)}


def column(table, name):
    return [row[table.columns.index(name)] for row in table.rows]


def shown(table, width=120):
    console = Console(file=io.StringIO(), width=width)
    console.print(table.rich())
    return console.file.getvalue()


def parsed(markdown):
    """Cells of a Markdown table, heads first."""
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines[:1] + lines[2:]]
    return [[cell.strip().replace(r"\|", "|") for cell in row] for row in rows]


class TestTable:
    TABLE = TextTable("Title", ("name", "a|b", "none"), (("x[red]|", "1", "–"), ("y", "2", "–")))

    def test_markdown_has_every_cell(self):
        heads, *rows = parsed(self.TABLE.markdown())
        assert tuple(heads) == self.TABLE.columns
        assert tuple(map(tuple, rows)) == self.TABLE.rows
        assert "\n| :-- | --: | --: |\n" in self.TABLE.markdown()

    def test_notes_are_a_list_under_the_table(self):
        text = replace(self.TABLE, notes=("one", "two")).markdown()
        assert text.endswith("|\n\n- one\n- two\n")
        assert self.TABLE.markdown().endswith("|\n")

    def test_a_terminal_shows_every_cell_as_it_is(self):
        text = shown(replace(self.TABLE, notes=("[one]",)))
        for word in ("Title", "a|b", "x[red]|", "[one]"):
            assert word in text

    def test_numbers_stay_whole_where_names_must_give_way(self):
        table = TextTable("T", ("name", "95%"), (("z" * 60, "+11.3 to +24.8"),))
        text = shown(table, width=30)
        assert "+11.3 to +24.8" in text
        assert text.count("z") == 60

    def test_names_stand_to_the_left_and_numbers_to_the_right(self):
        table = TextTable("T", ("name", "number"), (("x", "1"), ("yyy", "23456789")))
        row = next(line for line in shown(table).splitlines() if " x " in line)
        other = next(line for line in shown(table).splitlines() if " yyy " in line)
        assert row.index("x") == other.index("yyy")
        assert row.index("1") == other.index("9")

    def test_columns_that_say_nothing_are_left_out(self):
        table = TextTable(
            "T", ("a", "b", "c", "d"), (("", "", "1", "–"), ("", "", "–", "–")), texts=2
        )
        assert table.filled() == TextTable("T", ("a", "c"), (("", "1"), ("", "–")), texts=1)
        empty = replace(table, rows=())
        assert empty.filled() == empty


class TestReadSummary:
    @pytest.mark.parametrize("name", ["summary.json", "summary.json.gz"])
    def test_what_was_written(self, tmp_path, name):
        run = drawn()
        data = json.dumps(run.as_dict()).encode()
        (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
        for path in (tmp_path, tmp_path / name):
            assert read_summary(path) == run

    def test_the_plain_file_is_the_newer_one(self, tmp_path):
        new, old = drawn(0), drawn(1)
        (tmp_path / "summary.json").write_text(json.dumps(new.as_dict()))
        (tmp_path / "summary.json.gz").write_bytes(
            gzip.compress(json.dumps(old.as_dict()).encode())
        )
        assert read_summary(tmp_path) == new

    def broken(self, tmp_path, name="summary.json", **changes):
        fields = json.loads(json.dumps(one_task(("a", "", 1, 2)).as_dict())) | changes
        (tmp_path / name).write_text(json.dumps(fields))
        return tmp_path / name

    @pytest.mark.parametrize(
        "changes",
        [
            {"schema": "dllm-eval-0"},
            {"cells": [{}]},
            {"cells": 3},
            {"settings": [{"method": "a"}]},
            {"settings": []},
            {"tasks": []},
        ],
    )
    def test_another_schema_or_torn_fields(self, tmp_path, changes):
        path = self.broken(tmp_path, **changes)
        with pytest.raises(DllmError, match=r"summary.json: expected .* schema dllm-eval-1"):
            read_summary(path)

    @pytest.mark.parametrize("data", [b"", b"{", b"[1]", b"\xff\xfe{", b"null"])
    @pytest.mark.parametrize("name", ["summary.json", "summary.json.gz"])
    def test_no_json(self, tmp_path, data, name):
        (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
        with pytest.raises(DllmError, match="expected"):
            read_summary(tmp_path / name)

    def test_torn_or_no_gzip(self, tmp_path):
        path = tmp_path / "summary.json.gz"
        whole = gzip.compress(b"{}" * 99)
        for data in (b"{}", whole[:-9], whole[:10] + b"\xff" * 9 + whole[19:]):
            path.write_bytes(data)
            with pytest.raises(DllmError, match="expected"):
                read_summary(path)

    def test_no_file_is_one_error(self, tmp_path):
        with pytest.raises(DllmError, match=r"summary\.json: No such file"):
            read_summary(tmp_path)


class TestReport:
    def test_settings(self):
        table = tables(drawn())["Settings"]
        points = select(drawn()).points
        assert column(table, "score, %") == [f"{100 * p.score:.1f}" for p in points]
        assert column(table, "option") == [p.setting.option for p in points]
        assert column(table, "forwards / answer") == [f"{p.forwards:.1f}" for p in points]
        spans = [tuple(f"{100 * limit:.1f}" for limit in p.interval) for p in points]
        assert column(table, "95%") == ["–".join(span) for span in spans]
        assert any(
            "1200 answers per setting to copy:n=4+8, shuffle" in note for note in table.notes
        )

    def test_settings_with_fewer_answers_are_told(self):
        cells = [cell(i, 0, 5, 9, count=count) for i, count in enumerate((20, 30, 10))]
        run = summary(cells, [setting(name) for name in "abc"], TASKS[:1])
        assert "10 to 30 answers per setting" in tables(run)["Settings"].notes[0]

    def test_the_front_is_marked(self):
        run = one_task(("a", "1", 90, 1000), ("a", "2", 80, 200), ("b", "", 70, 400))
        assert column(tables(run)["Settings"], "*") == ["*", "*", ""]

    def test_every_run_has_a_front_of_its_own(self):
        good, bad = one_task(("a", "", 90, 100)), one_task(("a", "", 10, 900))
        table = tables(good, bad)["Settings"]
        assert column(table, "*") == ["*", "*"]
        assert column(table, "method") == ["run0: a", "run1: a"]

    def test_losses_and_times(self):
        table = tables(drawn())["Losses and time"]
        splits = [p.split for p in select(drawn()).points]
        seconds = [p.seconds for p in select(drawn()).points]
        assert column(table, "model loss") == [f"{100 * s.model_loss:.1f}" for s in splits]
        assert column(table, "excess") == [f"{100 * s.excess:.1f}" for s in splits]
        assert column(table, "factorisation loss") == [
            f"{100 * s.factorisation_loss:.1f}" for s in splits
        ]
        assert column(table, "order") == [f"{p.order:.2f}" for p in select(drawn()).points]
        assert column(table, "forward, ms") == [f"{1000 * s['forward']:.1f}" for s in seconds]

    def test_no_times_where_forwards_were_remembered(self):
        table = tables(drawn(memo=True))["Losses and time"]
        assert not any("ms" in name for name in table.columns)

    def test_ceilings_of_some_tasks_are_said_to_be_of_some(self):
        whole, part = drawn(), drawn()
        for one in part.cells:
            if one.task == 2:
                one.ceiled = one.ceiled_right = 0
        notes = [" ".join(tables(run)["Losses and time"].notes) for run in (whole, part)]
        assert "with a known ceiling" not in notes[0]
        assert "the 2 of 3 tasks with a known ceiling" in notes[1]

    def test_methods(self):
        table = tables(drawn())["Methods"]
        found = select(drawn())
        for row, curve in zip(table.rows, found.curves, strict=True):
            pairs, best = curve.pairs, max(y for c in found.curves for _, y in c.pairs)
            assert row[0] == curve.name
            assert row[1] == f"{log_area(pairs, found.reach):.1f}"
            assert row[table.columns.index("AUP")] == f"{aup(pairs, best):.1f}"
            assert row[table.columns.index("PB70")] == " ".join(
                f"{parallelism_at(pairs, 70, interpolate=i):.2f}" for i in (False, True)
            )
            assert f"{100 * curve.oracle.score:.1f} at" in row[table.columns.index("oracle")]
        assert f"y_max = {best:.1f}%" in " ".join(table.notes)

    def test_never_reached(self):
        run = one_task(("a", "", 85, 200), ("b", "", 95, 200))
        assert column(tables(run)["Methods"], "PB90") == ["–", "5.00 5.00"]

    def test_areas_go_as_far_as_asked(self):
        run = one_task(("a", "", 80, 250))  # 4 tokens per forward of 10
        assert column(tables(run, reach=4.0)["Methods"], "LPA") == ["80.0"]
        assert column(tables(run, reach=16.0)["Methods"], "LPA") == ["40.0"]
        assert column(tables(run, reach=16.0)["LPA by task"], "a") == ["40.0"]
        assert column(tables(run)["LPA by task"], "a") == column(tables(run)["Methods"], "LPA")

    def test_who_is_best_where(self):
        cells = [cell(0, 0, 90, 1000), cell(1, 0, 80, 200), cell(2, 0, 80, 200)]
        cells += [cell(i, 1, 100, 500) for i in range(3)]
        run = summary(cells, [setting(name) for name in "abc"])
        table = tables(run)["Best method by task"]
        assert table.columns == ("task", "≥ 1", "≥ 2", "≥ 4")
        assert table.rows == (
            ("copy", "90.0 a", "80.0 b, c", "80.0 b, c"),
            ("shuffle", "100.0 all", "100.0 all", "–"),
        )

    def test_a_single_method_is_named(self):
        assert tables(one_task(("a", "", 90, 1000)))["Best method by task"].rows[0][1] == "90.0 a"

    def test_errors_the_most_frequent_first(self):
        reasons = [{"ok": 5, "parse": 2, "length": 3}, {"ok": 1, "parse": 9}]
        cells = [cell(i, 0, r["ok"], 20, count=10, reasons=r) for i, r in enumerate(reasons)]
        table = tables(summary(cells, [setting("a"), setting("b")]))["Errors"]
        assert table.columns == ("method", "right", "parse", "length")
        assert table.rows == (("a", "50.0", "20.0", "30.0"), ("b", "10.0", "90.0", "–"))

    def test_against(self):
        found = tables(drawn(), against=("old", drawn(1, skill=0.9)))
        methods = found["run0 against old: methods"]
        assert column(methods, "method") == ["confidence", "threshold"]
        assert all(float(points) > 0 for points in column(methods, "score, points more"))
        assert all(float(times) > 1 for times in column(methods, "forwards, times fewer"))
        assert len(found["run0 against old: settings"].rows) == 9
        cells = found["run0 against old: tasks and sizes"]
        gains = [abs(float(gain)) for gain in column(cells, "gain")]
        assert gains == sorted(gains, reverse=True)
        assert 0 < len(gains) <= 20
        assert re.match(r"\d+ of 54 differ clearly", cells.notes[0])

    def test_before_stands_before_after(self):
        new, old = one_task(("a", "", 90, 250)), one_task(("a", "", 80, 500))
        found = tables(new, against=("old", old), reach=16.0)
        (methods,) = found["run0 against old: methods"].rows
        names = found["run0 against old: methods"].columns
        assert dict(zip(names, methods, strict=True)) == {
            "method": "a",
            "forwards, times fewer": "2.00",
            "score, points more": "+10.0",
            "LPA before": "20.0",
            "LPA": "45.0",
            "PB90": "4.00",
            "PB80 before": "2.00",
            "PB80": "4.00",
            "PB70 before": "2.00",
            "PB70": "4.00",
        }
        (row,) = found["run0 against old: settings"].rows
        assert row[:4] == ("a", "80.0", "90.0", "+10.0")
        assert row[-1] == "×0.50"

    def test_the_largest_changes_come_first_worse_or_better(self):
        def run(*right):
            cells = [cell(0, i, value, 100) for i, value in enumerate(right)]
            return summary(cells, [setting("a")])

        found = tables(run(60, 10, 50), against=("old", run(30, 90, 50)))
        assert column(found["run0 against old: tasks and sizes"], "gain") == ["-80.0", "+30.0"]

    def test_against_itself(self):
        found = tables(drawn(), against=("old", drawn()))
        assert column(found["run0 against old: methods"], "forwards, times fewer") == ["1.00"] * 2
        assert found["run0 against old: tasks and sizes"].rows == ()

    def test_other_suites_are_told(self):
        other = one_task(("a", "", 1, 100), suite="dllm-suite-0")
        run = one_task(("a", "", 1, 100))
        told = tables(run, against=("old", other))["run0 against old: methods"].notes
        assert any("dllm-suite-1 and dllm-suite-0" in note for note in told)
        assert any("do not compare" in note for note in tables(run, other)["Settings"].notes)
        assert not any("do not compare" in note for note in tables(run, run)["Settings"].notes)

    def test_runs_with_other_tasks_stand_side_by_side(self):
        run = drawn()
        part = summary([c for c in run.cells if c.task == 1], run.plan.settings)
        found = tables(run, part)
        areas = found["LPA by task"]
        assert column(areas, "run1: threshold")[0] == "–"
        assert column(areas, "run1: threshold")[1] == column(areas, "run0: threshold")[1]

    def test_what_is_left_out_is_told(self):
        run = drawn()
        run = summary(run.cells[:-1], run.plan.settings, oracles=run.oracles)
        assert any("left out" in n and "threshold=0.5" in n for n in tables(run)["Settings"].notes)

    def test_what_was_dropped_is_told_first(self):
        run = drawn()
        told = tuple(Skipped(s, 2, n, "no distribution known") for s in range(9) for n in (4, 8))
        cells = [cell for cell in run.cells if cell.task < 2]
        run = summary(cells, run.plan.settings, oracles=run.oracles)
        run = replace(run, plan=replace(run.plan, skipped=told))
        first = report([("mine", run)])[0]
        assert first.title == "Settings: 2 of 3 tasks"
        assert first.notes[0].startswith(
            "WARNING: mine: the mean is over 2 of 3 tasks; not asked, and not in it: replace_random"
        )
        assert first.notes[0].endswith("(no distribution known)")
        assert "WARNING" in first.markdown()

    def test_one_answer_of_one_token(self):
        one = cell(0, 0, 0, 1, count=1, tokens=1, filled=1, reasons={"parse": 1})
        found = tables(
            summary([one], [setting("a")]), against=("b", summary([one], [setting("a")]))
        )
        assert found["Methods"].rows[0][0] == "a"
        assert "LPA" not in found["Methods"].columns

    def test_an_oracle_without_right_answers(self):
        oracle = OracleCell("a", 0, 4, 100, 0, 100, 1000)
        run = one_task(("a", "", 0, 100), oracles=[oracle])
        assert column(tables(run)["Methods"], "oracle") == ["0.0 at 10.00"]

    @pytest.mark.parametrize("options", [{"tasks": ["copy"]}, {"n": [8]}, {}])
    def test_both_ways_to_write_hold_the_same(self, options):
        run = drawn(count=40)
        for table in tables(run, run, against=("old", run), **options).values():
            assert parsed(table.markdown()) == [list(table.columns), *map(list, table.rows)]
            text = " ".join(shown(table, width=300).split())
            for row in table.rows:
                assert all(" ".join(one.split()) in text for one in row)

    def test_runs_need_names(self):
        with pytest.raises(DllmError, match="expected different names"):
            report([("a", drawn()), ("a", drawn())])
