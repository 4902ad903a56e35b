"""eval run, tasks and regrade, as a user types them."""

import json

import pytest

from dllm.eval.tasks import SUITES, TASKS
from tests.cli.common import fails, modules_after

ORACLE = ("eval", "run", "--model", "oracle", "--count", 6)


def test_a_run_is_written_shown_and_graded_again(run, tmp_path):
    out = tmp_path / "run"
    arguments = ("--task", "copy:n=3", "--task", "shuffle:n=3", "--sampler", "quota:count=1/3")
    result = run(*ORACLE, "--out", out, *arguments, "--temperature", 1, "--seed", 4)
    assert result.exit_code == 0, result.output
    assert "count=3" in result.stdout
    assert f"more: dllm eval report {out}" in result.stdout
    summary = json.loads((out / "summary.json").read_text())
    assert [s["options"] for s in summary["settings"]] == [
        {"sampler": f"quota:count={k}", "temperature": 1.0} for k in (1, 3)
    ]
    assert [(c["task"], c["setting"], c["count"], c["nfe"]) for c in summary["cells"]] == [
        (0, 0, 6, 18),
        (1, 0, 6, 18),
        (0, 1, 6, 6),
        (1, 1, 6, 6),
    ]
    assert summary["cells"][0]["right"] == 6
    again = run("eval", "regrade", out)
    assert (again.exit_code, again.stdout.split(";")[0]) == (
        0,
        "24 answers graded, 0 otherwise than before",
    )


def test_the_bundled_model_is_asked_its_own_suite(run, tmp_path, monkeypatch):
    monkeypatch.setitem(SUITES, "tiny", ("copy:n=3", "shuffle:n=3"))
    result = run("eval", "run", "--out", tmp_path / "run", "--count", 1, "--sampler", "dus")
    assert result.exit_code == 0, result.output
    plan = json.loads((tmp_path / "run" / "run.json").read_text())
    assert tuple(plan["tasks"]) == SUITES["tiny"]
    assert plan["model"]["name"] == run.asked["model"] == "tiny"


def test_parts_combine(run, tmp_path):
    out = tmp_path / "run"
    parts = ("--block-length", 0, "--block-length", 2, "--cache", "none")
    result = run(*ORACLE, "--out", out, "--task", "copy:n=3", "--preset", "eb", *parts)
    assert result.exit_code == 0, result.output
    settings = json.loads((out / "run.json").read_text())["settings"]
    assert [(s["method"], s["options"]["block_length"]) for s in settings] == [
        ("preset eb + block_length=None", None),
        ("preset eb + block_length=2", 2),
    ]


def test_what_does_not_fit_the_model_is_said_loudly(run, tmp_path):
    """Before it runs and in the table: the mean is over fewer tasks than were asked for."""
    out = tmp_path / "run"
    tasks = ("--task", "copy:n=3", "--task", "words_to_sentence", "--task", "shuffle:n=3")
    result = run(*ORACLE, "--out", out, *tasks, "--sampler", "dus")
    assert result.exit_code == 0, result.output
    lines = [line for line in result.stderr.splitlines() if line.startswith("warning: ")]
    assert lines
    assert all("words_to_sentence n=" in line for line in lines)
    assert all("is not run, and not in the mean" in line for line in lines)
    assert "Settings: 2 of 3 tasks" in result.stdout
    assert "WARNING: run: the mean is over 2 of 3 tasks" in result.stdout
    shown = run("eval", "report", out)
    assert "WARNING: run: the mean is over 2 of 3 tasks" in shown.stdout
    whole = run(*ORACLE, "--out", tmp_path / "whole", *tasks[:2], "--sampler", "dus")
    assert "warning" not in (whole.stderr + whole.stdout).lower()


def test_it_says_what_keeps_programs_in(run, tmp_path, monkeypatch):
    from dllm.cli.eval_run import notes
    from dllm.eval.sandbox.execution import WALLS
    from dllm.eval.tasks import task_of

    for wall in WALLS:
        monkeypatch.setattr("dllm.eval.tasks.humaneval.best_wall", lambda wall=wall: wall)
        tasks = map(task_of, ("humaneval", "copy", "humaneval:setup=dream"))
        assert notes(tasks) == [f"humaneval: programs run behind {wall.about}"]
    file = tmp_path / "none.jsonl"
    result = run(*ORACLE, "--out", tmp_path / "run", "--task", f"humaneval:file={file}")
    assert result.exit_code == 2
    assert result.stderr.startswith("humaneval: programs run behind an audit hook alone")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--task", "sorting"), ("unknown task 'sorting'", "copy", "shuffle")),
        (("--task", "copy:size=3"), ("'copy' has no option 'size'", "n, surface")),
        (("--suite", "big"), ("unknown suite 'big'", "full, oracle, tiny")),
        (("--grid", "all"), ("unknown grid 'all'", "quick, rules, presets")),
        (("--sampler", "treshold"), ("unknown sampler 'treshold'", "threshold")),
        (("--count", "0"), ("--count", "0")),
        (("--figure", "curve.gif"), ("curve.gif", ".png or .svg")),
        (("--task", "words_to_sentence"), ("nothing can be run", "no exact distribution")),
    ],
)
def test_what_is_wrong_is_said_and_nothing_is_written(run, tmp_path, arguments, words):
    fails(run(*ORACLE, "--out", tmp_path / "run", *arguments), *words)
    assert not (tmp_path / "run").exists()


def test_ctrl_c_keeps_what_is_finished(run, tmp_path, monkeypatch):
    out = tmp_path / "run"
    line = (*ORACLE, "--out", out, "--task", "copy:n=3", "--sampler", "quota:count=1/2/3")
    calls = []

    def cut(*arguments, **options):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    import dllm.eval.run

    real = dllm.eval.run.answer
    monkeypatch.setattr("dllm.eval.run.answer", cut)
    result = run(*line)
    assert result.exit_code == 130
    assert "the same command goes on" in result.stderr
    assert (out / "results.0.jsonl").read_text().count("\n") == 6
    assert run(*line).exit_code == 0
    assert (out / "results.jsonl").read_text().count("\n") == 18
    assert len(calls) == 4


def test_no_run_to_grade(run, tmp_path):
    fails(run("eval", "regrade", tmp_path), "no run of `dllm eval run` in it")


def test_tasks_lists_all_of_them(run):
    result = run("eval", "tasks")
    assert result.exit_code == 0
    assert all(name in result.stdout for name in (*TASKS, *SUITES))


def test_help_needs_no_torch():
    assert "torch" not in modules_after("eval", "run", "--help")
