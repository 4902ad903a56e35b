"""Runs of the suite: complete, resumable, shared by processes, told apart, graded again."""

import dataclasses
import json
import math
import os
import subprocess
import sys

import pytest

import dllm
from dllm.errors import DllmError
from dllm.eval.models import Checkpoint, OracleModel
from dllm.eval.oracle import Oracle
from dllm.eval.records import EvalSetting, SampleRecord, Summary
from dllm.eval.regrade import regrade
from dllm.eval.run import Sweep, configure, made, pieces, run
from dllm.eval.store import Store
from dllm.eval.tasks import draw, task_of
from dllm.output import Commit, Output, Timings
from dllm.processes import Ranks

TASKS = ("copy:n=3+4", "shuffle:n=3+4")
SETTINGS = (
    EvalSetting("threshold", "threshold=0.9", {"sampler": "threshold:threshold=0.9"}),
    # a random order, so that draws have to be the row's own
    EvalSetting("quota", "count=2", {"sampler": "quota:remasking=random,count=2"}),
)
FINITE = "tests.eval.finite:Finite"
SHORT = ("copy:wording=short,n=3+4",)
SWEEP = Sweep(TASKS, SETTINGS, count=10, seeds=(0, 3), batch_size=3)


@pytest.fixture(scope="module")
def model():
    """The exact model: what is stored and when does not depend on who answers, and it is quick."""
    return OracleModel()


@pytest.fixture(scope="module")
def tiny():
    return Checkpoint(dllm.load("tiny"), "tiny")


@pytest.fixture(scope="module")
def whole(model, tmp_path_factory):
    """A run that nothing disturbed."""
    out = tmp_path_factory.mktemp("whole") / "run"
    run(model, SWEEP, out)
    return out


def untimed(path):
    """The rows of a finished run without their seconds, in file order."""
    return [dataclasses.replace(row, seconds=[]) for row in Store(path).rows()]


def counted(path):
    summary = json.loads((path / "summary.json").read_text())
    for cell in summary["cells"]:
        del cell["seconds"]
    return summary["cells"], summary["oracles"], summary["settings"], summary["tasks"]


def test_every_sample_is_answered_once_by_every_setting(whole):
    rows = untimed(whole)
    expected = [
        (task, n, seed, i, setting)
        for task in range(2)
        for n in (3, 4)
        for seed in (0, 3)
        for i in range(5)
        for setting in range(2)
    ]
    assert [row.key for row in rows] == expected
    files = ["results.jsonl", "run.json", "samples.jsonl", "summary.json"]
    assert sorted(p.name for p in whole.iterdir()) == files


def test_the_summary_counts_the_rows_and_survives_json(whole):
    summary = Summary.from_dict(json.loads((whole / "summary.json").read_text()))
    assert json.loads(json.dumps(summary.as_dict())) == summary.as_dict() | {
        "tasks": list(TASKS),
        "seeds": [0, 3],
        "skipped": [],
    }
    rows = list(Store(whole).rows())
    for cell in summary.cells:
        mine = [r for r in rows if (r.setting, r.task, r.n) == (cell.setting, cell.task, cell.n)]
        assert cell.count == len(mine) == 10
        assert cell.right == sum(r.score for r in mine) == cell.reasons.get("ok", 0)
        assert cell.nfe == sum(r.nfe for r in mine)
        assert cell.tokens == sum(r.tokens for r in mine)
        for phase in range(4):
            assert cell.seconds[phase] == pytest.approx(sum(r.seconds[phase] for r in mine))
    for oracle in summary.oracles:
        assert oracle.count == 10


def test_the_parts_of_the_time_are_none_of_them_negative(whole):
    for row in Store(whole).rows():
        prompt, _, sampler, other = row.seconds
        assert min(row.seconds) >= 0
        assert prompt > 0
        assert sampler > 0
        assert other > 0
        assert row.nfe == 1 or row.seconds[1] > 0  # what is behind the first forward


def test_batch_size_changes_no_answer(tiny, model, whole, tmp_path):
    run(model, dataclasses.replace(SWEEP, batch_size=1), tmp_path / "run")
    assert untimed(tmp_path / "run") == untimed(whole)
    small = Sweep(["shuffle:wording=short,n=3"], SETTINGS, count=3, seeds=(3,), batch_size=3)
    run(tiny, small, tmp_path / "three")
    run(tiny, dataclasses.replace(small, batch_size=1), tmp_path / "one")
    assert untimed(tmp_path / "three") == untimed(tmp_path / "one")


class Stop(Exception):
    pass


@pytest.mark.parametrize("error", [KeyboardInterrupt, Stop])
@pytest.mark.parametrize("after", [1, 3, 11])
def test_a_run_that_was_cut_goes_on(model, whole, tmp_path, after, error):
    calls = []

    def cut(done, total, setting):
        calls.append(done)
        if len(calls) == after:
            raise error

    out = tmp_path / "run"
    with pytest.raises(error):
        run(model, SWEEP, out, on_progress=cut)
    part = out / "results.0.jsonl"
    stored = part.read_bytes()
    assert stored.count(b"\n") > 0
    part.write_bytes(stored[:-20])  # as if the last line had been cut off
    run(model, SWEEP, out)
    assert untimed(out) == untimed(whole)
    assert counted(out) == counted(whole)


def test_ctrl_c_in_a_forward_loses_the_batch_at_work_alone(model, whole, tmp_path, monkeypatch):
    calls, forward = [], Oracle.__call__

    def cut(*arguments):
        calls.append(arguments)
        if len(calls) == 60:
            raise KeyboardInterrupt
        return forward(*arguments)

    monkeypatch.setattr(Oracle, "__call__", cut)
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        run(model, SWEEP, out)
    stored = list(Store(out).rows())
    assert 0 < len(stored) < len(untimed(whole))
    assert {row.finish for row in stored} <= {"eos", "length"}
    run(model, SWEEP, out)
    assert untimed(out) == untimed(whole)


def test_what_is_there_is_not_decoded_again(model, whole, tmp_path):
    class Silent(OracleModel):
        def ask(self, task, n, seed, samples):
            assert len(samples) == 1, "only the check before a run asks"
            return super().ask(task, n, seed, samples)

    before = (whole / "results.jsonl").read_bytes()
    run(Silent(), SWEEP, whole)
    assert (whole / "results.jsonl").read_bytes() == before


def test_a_run_grows_by_settings_tasks_seeds_and_samples(model, whole, tmp_path):
    small = Sweep(TASKS[:1], SETTINGS[:1], count=4, seeds=(3,), batch_size=3)
    run(model, small, tmp_path / "run")
    run(model, SWEEP, tmp_path / "run")
    assert untimed(tmp_path / "run") == untimed(whole)
    plan = run(model, small, tmp_path / "run").plan  # nothing to do, nothing lost
    assert untimed(tmp_path / "run") == untimed(whole)
    assert (plan.count, plan.seeds, plan.tasks) == (10, (0, 3), TASKS)
    assert [s.identity for s in plan.settings] == [s.identity for s in SETTINGS]


def test_what_a_run_was_asked_stays_with_it(model, tmp_path):
    """Also where it could be drawn anew no more, since a file is gone."""
    out, small = tmp_path / "run", Sweep(TASKS[:1], SETTINGS[:1], count=2, memo=True)
    run(model, small, out)
    file = out / "samples.jsonl"
    file.write_text(file.read_text().replace('"prompt": "', '"prompt": "Once: '))
    again = run(model, dataclasses.replace(small, count=4, memo=False), out)
    old = [sample.prompt.startswith("Once: ") for _, sample in Store(out).samples()]
    assert old == [True, False, True, False]  # of size 3, then of size 4
    assert again.plan.memo, "some of its seconds mean nothing"


def test_the_number_of_processes_changes_nothing(model, whole, tmp_path):
    """Both in turn: the second finds the first's rows; nobody waits here."""

    class Alone(Ranks):
        def wait(self):
            pass

    out = tmp_path / "run"
    assert run(model, SWEEP, out, ranks=Alone(0, 2)) is not None  # writes what is there so far
    first = len(untimed(out))
    assert 0 < first < len(untimed(whole))
    assert run(model, SWEEP, out, ranks=Alone(1, 2)) is None
    assert run(model, SWEEP, out, ranks=Alone(0, 2)) is not None
    assert untimed(out) == untimed(whole)


@pytest.mark.slow
def test_torchrun_equals_one_process(root, whole, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [*"--nproc-per-node 2 -m dllm eval run --model oracle".split(), "--out"]
    command += [str(tmp_path / "run"), *"--count 10 --seed 0 --seed 3 --batch-size 3".split()]
    command += [word for task in TASKS for word in ("--task", task)]
    command += [word for s in SETTINGS for word in ("--sampler", s.options["sampler"])]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0, done.stderr
    assert untimed(tmp_path / "run") == untimed(whole)


def test_a_run_of_another_model_is_refused(tiny, whole):
    for other in (tiny, OracleModel(jitter=0.5)):
        with pytest.raises(DllmError, match=r"a run with model=.*choose another directory"):
            run(other, dataclasses.replace(SWEEP, tasks=["copy:n=3,wording=short"]), whole)
    half = Checkpoint(dllm.load("tiny", dtype="bfloat16"), "tiny")
    assert half.identity() != tiny.identity()


def test_a_run_of_another_version_of_the_suite_is_refused(model, whole, monkeypatch):
    monkeypatch.setattr("dllm.eval.run.SUITE", "dllm-suite-0")
    with pytest.raises(DllmError, match="a run with suite='dllm-suite-1': expected the same"):
        run(model, SWEEP, whole)


def test_a_directory_with_other_things_is_refused(model, tmp_path):
    (tmp_path / "thesis.txt").write_text("")
    with pytest.raises(DllmError, match="expected a new directory"):
        run(model, SWEEP, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_regrading_gives_the_same_summary(whole):
    before = (whole / "summary.json").read_text()
    assert regrade(whole) == (0, 80)
    assert (whole / "summary.json").read_text() == before


def test_regrading_sees_a_changed_text(model, tmp_path):
    run(model, Sweep(TASKS[:1], SETTINGS[:1], count=4), tmp_path / "run")
    store = Store(tmp_path / "run")
    rows = list(store.rows())
    store.rewrite([dataclasses.replace(rows[0], text="nothing of the kind"), *rows[1:]])
    assert regrade(tmp_path / "run") == (1, 4)
    assert [row.score for row in store.rows()] == [False, True, True, True]


def test_a_plan_in_a_file_imports_no_task_unless_the_user_names_it_too(tiny, tmp_path):
    out, of_mine = tmp_path / "run", Sweep([FINITE], SETTINGS[:1], count=2)
    run(tiny, of_mine, out)
    with pytest.raises(DllmError, match=r"tests\.eval\.finite:Finite'.*a file may name no other"):
        regrade(out)
    with pytest.raises(DllmError, match="a file may name no other"):
        run(tiny, Sweep(SHORT, SETTINGS[:1], count=2), out)
    assert regrade(out, [FINITE]) == (0, 2)
    assert run(tiny, of_mine, out) is not None


def test_an_unfinished_run_cannot_be_regraded(model, tmp_path):
    def cut(done, total, setting):
        raise Stop

    with pytest.raises(Stop):
        run(model, SWEEP, tmp_path / "run", on_progress=cut)
    with pytest.raises(DllmError, match="not finished"):
        regrade(tmp_path / "run")


def test_what_cannot_be_run_is_skipped_with_its_reason(tiny, tmp_path):
    settings = (
        EvalSetting("ok", "", {"sampler": "dus"}),
        EvalSetting("prophet", "", {"prefilled": ["200:The answer is"]}),
    )
    summary = run(tiny, Sweep(SHORT, settings, count=2), tmp_path / "run")
    assert {cell.setting for cell in summary.cells} == {0}
    assert [(s.setting, s.task, s.n) for s in summary.plan.skipped] == [(1, 0, 3), (1, 0, 4)]
    assert "reach out of max_new_tokens=16" in summary.plan.skipped[0].reason
    again = run(tiny, Sweep(SHORT, settings[:1], count=3), tmp_path / "run")
    assert again.plan.skipped == summary.plan.skipped
    with pytest.raises(DllmError, match=r"nothing can be run: .*reach out of"):
        run(tiny, Sweep(SHORT, settings[1:], count=2), tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("change", [{"tasks": ()}, {"settings": ()}, {"count": 0}])
def test_a_sweep_of_nothing_is_an_error(change):
    with pytest.raises(DllmError, match="expected at least"):
        dataclasses.replace(SWEEP, **change)


def test_a_row_in_two_files_counts_once(whole, tmp_path):
    """As after a kill between writing the merged file and removing the parts."""
    (tmp_path / "run.json").write_bytes((whole / "run.json").read_bytes())
    for name in ("results.jsonl", "results.0.jsonl", "results.1.jsonl"):
        (tmp_path / name).write_bytes((whole / "results.jsonl").read_bytes())
    assert len(list(Store(tmp_path).rows())) == len(untimed(whole))


def test_a_count_is_shared_out_among_sizes_and_ends_with_the_questions(tiny):
    sweep = Sweep([TASKS[0], FINITE], SETTINGS[:1], count=5, batch_size=2)
    tasks = {spec: task_of(spec) for spec in sweep.tasks}
    work = list(pieces(sweep.plan(tiny), tasks, sweep))
    assert [tuple(piece) for piece in work] == [
        (0, 3, 0, 0, 2),
        (0, 3, 0, 2, 3),
        (0, 4, 0, 0, 2),
        (1, 1, 0, 0, 2),
        (1, 1, 0, 2, 3),
        (1, 2, 0, 0, 2),
    ]
    many = dataclasses.replace(sweep, count=100, batch_size=100)
    sizes = {piece[:2]: piece.last for piece in pieces(many.plan(tiny), tasks, many)}
    assert sizes == {(0, 3): 50, (0, 4): 50, (1, 1): 3, (1, 2): 3}


def test_a_task_says_how_it_is_put(tiny, tmp_path):
    run(tiny, Sweep([FINITE], SETTINGS[:1], count=6, seeds=(7,)), tmp_path / "run")
    rows = untimed(tmp_path / "run")
    assert {row.budget for row in rows} == {24}
    assert not any("," in row.text for row in rows)
    task = task_of(FINITE)
    questions = tiny.ask(task, 1, 7, {0: draw(task, 1, 7, 0)})
    assert questions.prompts == [tiny.text.encode("Copy the list: pear, fig0")]
    config = configure(task, questions, SETTINGS[0], 7)
    assert (config.seed, config.stop, config.max_new_tokens) == (7, (",",), 24)
    own = EvalSetting("own", "", {"sampler": "dus", "max_new_tokens": 40})
    assert configure(task, questions, own, 7).max_new_tokens == 40
    infill = task_of("copy:wording=short,surface=infill,n=3")
    questions = tiny.ask(infill, 3, 0, {0: draw(infill, 3, 0, 0)})
    assert configure(infill, questions, own, 0).max_new_tokens == 6


def test_a_row_of_another_version_is_told(whole, tmp_path):
    line = json.loads((whole / "results.jsonl").read_text().splitlines()[0])
    del line["places"]
    (tmp_path / "run.json").write_bytes((whole / "run.json").read_bytes())
    (tmp_path / "results.jsonl").write_text(json.dumps(line) + "\n")
    with pytest.raises(DllmError, match=r"results\.jsonl, line 1: row: expected the key 'places'"):
        list(Store(tmp_path).rows())


def test_a_token_counts_where_it_was_committed_for_good():
    """Remasking makes position 5 a hole again in the second decision."""
    history = [
        Commit(0, 1, [4, 5], [7, 7], [1.0, 1.0]),
        Commit(0, 2, [6], [7], [1.0], remasked=[5]),
        Commit(0, 3, [5, 8], [9, 0], [1.0, 1.0]),  # 8 is the end, 7 is given
    ]
    output = Output("", [7, 9, 7, 6], "eos", 3, 3, 4, 5, Timings(0, 0), history)
    assert made(output, 4) == [1, 3, 2, 0, 3]


def test_sets_are_the_items_by_decision():
    row = SampleRecord(**{f.name: None for f in dataclasses.fields(SampleRecord)})
    row = dataclasses.replace(row, steps=[3, 0, 1, 0, 3, 0, 2], places=[0, 2, 4, 6])
    assert row.sets == [[1], [3], [0, 2]]
    assert dataclasses.replace(row, places=None).sets is None


CHANCES = [
    ("shuffle", 4, "random", 1.0),
    ("insert_random", 4, "random", 1.0),
    ("replace_random", 5, "random", 1.0),
    ("replace_random", 5, "low_confidence", 0.0),
]


@pytest.mark.parametrize(("task", "n", "order", "temperature"), CHANCES)
def test_the_oracle_loses_what_its_commits_say(tmp_path, task, n, order, temperature):
    """The exact model, run like any checkpoint: score and mean chance agree within 4 sigma."""
    options = {"temperature": temperature}
    settings = [
        EvalSetting("quota", f"{k}", {"sampler": f"quota:remasking={order},count={k}", **options})
        for k in (1, 2, 3)
    ]
    sweep = Sweep([f"{task}:n={n}"], settings, count=400, batch_size=400)
    for cell in run(OracleModel(), sweep, tmp_path / "run").cells:
        chance = cell.ceiling / cell.ceiled
        assert cell.ceiled == cell.count == 400
        sigma = math.sqrt(chance * (1 - chance) / cell.count)
        assert abs(cell.right / cell.count - chance) <= 4 * sigma
